"""Quality filters beside datatrove's, on the same text, in one run: documents a CPU second, and how often they agree.

    python benchmarks/prepare/filters.py [--mib 16] [--rounds 3] [--optimising] [--only all]

The text is half docstrings of the installed packages, half files of /usr/share/doc. Ours run in Spark's local[1],
reading Parquet; CPU seconds are those of the JVM and its Python workers, Spark's start and one pass to warm up apart.
datatrove's run in one process over a list in memory, the passes by turns with ours, so that what else runs here hits
both. Tessera's local JVM has no optimising compiler, which pays for a minute of work; --optimising gives it one, as
clusters have. datatrove is asked twice: as it comes, with spaCy's words, and with words split at white space as ours
are. Thresholds are equal. datatrove's environment is made from benchmarks/prepare/requirements.in;
TESSERA_DATATROVE_PYTHON names its Python.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tessera import spark as spark_module
from tessera.home import Home
from tessera.prepare import sample
from tessera.prepare.quality.settings import QualitySettings
from tessera.prepare.settings import SampleSettings
from tessera.spark import SparkSettings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

ROOT = Path(__file__).parents[2]
DOC = Path("/usr/share/doc")
LONGEST = 2**20
"""Characters of a text; larger files are left out, for datatrove's sake."""

SETTINGS = {
    "repetition": {"repetition": {}},
    "gopher": {"length": {}, "symbols": {"bullets": ["-", "•"]}, "stop_words": {}},
    "c4": {"c4": {}},
    "fineweb": {"punctuation": {}},
}
SETTINGS["all"] = {name: section for group in list(SETTINGS.values()) for name, section in group.items()}
ALL_OF_OURS = SETTINGS["all"] | {"digits": {}, "boilerplate": {}, "language": {}}
WORDS = ("spaces", "spacy")


def docstrings() -> Iterator[str]:
    for row in sample.read_docstrings(sample.installed(SampleSettings())):
        yield str(row["text"])


def documentation() -> Iterator[str]:
    for path in sorted(DOC.rglob("*")):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", "ignore")
            if text.strip() and "\x00" not in text and len(text) <= LONGEST:
                yield text


def texts_of(num_bytes: int) -> list[str]:
    return [*up_to(docstrings(), num_bytes=num_bytes // 2), *up_to(documentation(), num_bytes=num_bytes // 2)]


def up_to(texts: Iterator[str], *, num_bytes: int) -> Iterator[str]:
    """Until they have this many bytes; every fourth, so that more packages come in."""
    total = 0
    for text in islice(texts, 0, None, 4):
        yield text
        total += len(text.encode())
        if total >= num_bytes:
            return


class Datatrove:
    """The child process."""

    def __init__(self, texts: Sequence[str], *, folder: Path) -> None:
        with gzip.open(folder / "texts.json.gz", "wt", encoding="utf-8", compresslevel=1) as file:
            file.writelines(json.dumps(text) + "\n" for text in texts)
        python = os.environ.get("TESSERA_DATATROVE_PYTHON", str(ROOT / ".venv-datatrove" / "bin" / "python"))
        command = [python, str(Path(__file__).with_name("datatrove_filters.py")), str(folder / "texts.json.gz")]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def judge(self, name: str, *, words: str) -> tuple[float, list[str | None]]:
        assert self._child.stdin
        self._child.stdin.write(f"{name} {words}\n")
        self._child.stdin.flush()
        answer = self._answer()
        return answer["seconds"], answer["reasons"]

    def close(self) -> None:
        assert self._child.stdin
        self._child.stdin.close()
        self._child.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout
        found: dict[str, Any] = json.loads(self._child.stdout.readline())
        return found


class Tessera:
    """Spark with one core."""

    def __init__(self, texts: Sequence[str], *, optimising: bool, folder: Path) -> None:
        conf = {"spark.driver.extraJavaOptions": "-XX:+UseSerialGC"} if optimising else {}
        pq.write_table(pa.table({"number": range(len(texts)), "text": texts}), folder / "texts.parquet")
        self._spark = spark_module.session(SparkSettings(master="local[1]", conf=conf), home=Home(folder / "home"))
        self._texts = self._spark.read.parquet(str(folder / "texts.parquet"))
        self._clock = Clock()

    def judge(self, sections: dict[str, Any]) -> tuple[float, list[str | None]]:
        before = self._clock.seconds()
        rows = self._judged(sections).toArrow()
        seconds = self._clock.seconds() - before
        return seconds, rows.sort_by("number")["reason"].to_pylist()

    def _judged(self, sections: dict[str, Any]) -> "DataFrame":
        from pyspark.sql import functions as F

        from tessera.prepare.quality import filters

        settings = QualitySettings.model_validate(sections)
        return self._texts.select("number", filters.reason(F.col("text"), settings=settings).alias("reason"))


class Clock:
    """CPU seconds of Spark: the JVM and its Python workers, those that have ended since as they were last seen."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, float], float] = {}

    def seconds(self) -> float:
        jvm = next(child for child in psutil.Process().children(recursive=True) if child.name() == "java")
        for process in (jvm, *jvm.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                self._seen[process.pid, process.create_time()] = times.user + times.system
        return sum(self._seen.values())


def compare(texts: Sequence[str], *, names: Sequence[str], rounds: int, optimising: bool, folder: Path) -> None:
    theirs, ours = Datatrove(texts, folder=folder), Tessera(texts, optimising=optimising, folder=folder)
    num_mb = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(texts):,} texts, {num_mb:.1f} MB; documents a CPU second, {rounds} rounds by turns, medians")
    for name in names:
        ours.judge(SETTINGS[name])
    for name in names:
        seconds: dict[str, list[float]] = {"tessera": [], **{words: [] for words in WORDS}}
        reasons: dict[str, list[str | None]] = {}
        for _ in range(rounds):
            took, reasons["tessera"] = ours.judge(SETTINGS[name])
            seconds["tessera"].append(took)
            for words in WORDS:
                took, reasons[words] = theirs.judge(name, words=words)
                seconds[words].append(took)
        report(name, texts=texts, seconds=seconds, reasons=reasons)
    took, found = ours.judge(ALL_OF_OURS)
    rate = len(texts) / took
    print(f"digits, boilerplate and language as well: {rate:,.0f}, keeps {share_kept(found):.1%}")
    theirs.close()
    spark_module.stop()


def report(
    name: str, *, texts: Sequence[str], seconds: dict[str, list[float]], reasons: dict[str, list[str | None]]
) -> None:
    rates = {who: len(texts) / statistics.median(found) for who, found in seconds.items()}
    print(f"{name:<11} tessera {rates['tessera']:,.0f}, keeps {share_kept(reasons['tessera']):.1%}")
    long = [number for number, text in enumerate(texts) if len(text.split()) >= 50]
    for words in WORDS:
        pairs = [
            (ours is None, theirs is None) for ours, theirs in zip(reasons["tessera"], reasons[words], strict=True)
        ]
        agreed = sum(ours == theirs for ours, theirs in pairs) / len(pairs)
        agreed_long = sum(pairs[number][0] == pairs[number][1] for number in long) / len(long)
        print(
            f"  datatrove, {words:<6} {rates[words]:,.0f}, keeps {share_kept(reasons[words]):.1%}; "
            f"tessera is {rates['tessera'] / rates[words]:.1f} times as fast; agree on {agreed:.2%}, "
            f"of texts of 50 words and more on {agreed_long:.2%}"
        )
        differ = Counter(
            (ours, theirs)
            for ours, theirs in zip(reasons["tessera"], reasons[words], strict=True)
            if (ours is None) != (theirs is None)
        )
        for (our_reason, their_reason), count in differ.most_common(4):
            print(f"    {count:6,}  tessera {our_reason or 'keeps'}, datatrove {their_reason or 'keeps'}")


def share_kept(reasons: Sequence[str | None]) -> float:
    return sum(reason is None for reason in reasons) / len(reasons)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--optimising", action="store_true", help="a JVM with its optimising compiler")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        texts = texts_of(given.mib * 2**20)
        compare(texts, names=given.only, rounds=given.rounds, optimising=given.optimising, folder=Path(folder))


if __name__ == "__main__":
    main()
