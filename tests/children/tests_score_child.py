"""Scores in a process with a Spark session of its own, to be killed; ends with its record on stdout.

Arguments: home, source folder, tracking URI, the home of the models, prompt.
"""

import sys
from pathlib import Path

from tessera import spark
from tessera.home import Home
from tessera.serve import answers, batch
from tessera.serve.score_settings import ScoreSettings
from tessera.spark import SparkSettings


def main() -> None:
    root, source, uri, models, prompt = sys.argv[1:]
    home = Home(Path(root))
    settings = ScoreSettings(source=source, prompt=prompt, max_tokens=6, slice_rows=8)
    found = answers.find_source(settings, home=home)
    model = answers.find_model(uri, model="models:/score.main@champion", home=Home(Path(models)))
    session = spark.session(SparkSettings(master="local[2]", driver_memory="1g"), home=home)

    def tell(text: str, done: float | None = None, total: float | None = None) -> None:
        print(text, done, flush=True)

    record = batch.score(session, source=found, settings=settings, model=model, home=home, tell=tell)
    assert "torch" not in sys.modules
    print(record.to_json(), flush=True)


if __name__ == "__main__":
    main()
