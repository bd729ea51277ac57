"""Near-duplicates beside datatrove's MinHash: CPU seconds of one core, clusters, recall and precision, linearity.

    .venv/bin/python benchmarks/prepare/near_duplicates.py [--mb 25 50 100] [--datatrove .venv-datatrove/bin/python]

The text is real: docstrings of the installed packages and /usr/share/doc, with all the
near-duplicates that such text has; equal texts are taken once. Both systems get the same texts in the
same number of bands and rows, one after the other. CPU seconds are those of all processes: of Spark (local[1]) its JVM
and its Python workers, started and warm; of datatrove one process, its imports left out.

At the smallest size the truth is known: all pairs are compared exactly, by shingles that Python's own regular
expressions find. Recall is the share of pairs at or above the threshold that lie in one cluster. Precision is the share
of pairs in one cluster that exact comparison connects too.
"""

import argparse
import gzip
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import accumulate, takewhile
from math import comb
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from tessera import spark as spark_module
from tessera.home import Home
from tessera.prepare import sample
from tessera.prepare.duplicates import near
from tessera.prepare.duplicates.settings import NearDuplicateSettings
from tessera.prepare.settings import SampleSettings
from tessera.spark import SparkSettings

SETTINGS = NearDuplicateSettings()
DOC = Path("/usr/share/doc")
RUN = 200
MAX_BYTES = 100_000
"""Of a text: datatrove holds bands * rows * 8 bytes for every word of one, 3 GB for 10 MB."""
WORD = re.compile(r"[^\W_]+")

Groups = Mapping[int, object]
"""Document -> what its cluster is called; those in none are left out."""


def texts() -> Iterator[str]:
    """Docstrings, then the files of /usr/share/doc, unpacked; equal ones are not left out yet."""
    for row in sample.read_docstrings(sample.installed(SampleSettings())):
        yield str(row["text"])
    for path in sorted(DOC.rglob("*")):
        if path.is_file() and not path.is_symlink():
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            if b"\x00" not in data[:1000]:
                yield data.decode(errors="ignore")


def corpus() -> list[str]:
    """All texts of 20 characters to MAX_BYTES, each once, about 130 MB: neighbours, which are alike, stay together in
    runs, and the runs are in the order of their hashes, so that every beginning has docstrings and files alike."""
    every = list(dict.fromkeys(text for text in texts() if len(text) >= 20 and len(text.encode()) <= MAX_BYTES))
    runs = [every[start : start + RUN] for start in range(0, len(every), RUN)]
    runs.sort(key=lambda run: sha256(run[0]))
    return [text for run in runs for text in run]


def beginning(all_texts: list[str], *, num_bytes: int) -> list[str]:
    sums = accumulate(len(text.encode()) for text in all_texts)
    return all_texts[: sum(1 for _ in takewhile(lambda total: total < num_bytes, sums)) + 1]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def cpu_seconds() -> float:
    """Of all processes below this one, those that have ended included, and of this one."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(time.user + time.system for time in times) + sum(
        time.children_user + time.children_system for time in times
    )


def ours(spark: SparkSession, source: Path, folder: Path) -> tuple[dict[str, float], dict[int, object]]:
    """CPU seconds by stage, and the clusters."""
    began = cpu_seconds()
    bands = near.band_hashes(F.col("text"), settings=SETTINGS).alias("bands")
    spark.read.parquet(str(source)).select("number", "sha256", "text", bands).write.parquet(str(folder))
    after_bands = cpu_seconds()
    found = near.clusters(spark.read.parquet(str(folder)), settings=SETTINGS)
    displaced = dict(map(tuple, found.collect()))
    found.unpersist()
    seconds = {"signatures": after_bands - began, "clusters": cpu_seconds() - after_bands}
    hashes = pq.read_table(source)["sha256"].to_pylist()
    names = {**{group: group for group in displaced.values()}, **displaced}
    return seconds, {number: names[name] for number, name in enumerate(hashes) if name in names}


def theirs(python: Path, source: Path, folder: Path) -> tuple[dict[str, float], dict[int, object]]:
    script = Path(__file__).with_name("datatrove_minhash.py")
    command = [python, script, source.with_suffix(".jsonl"), folder, str(SETTINGS.bands), str(SETTINGS.rows)]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    print(
        f"datatrove {said['version']}, its default tokenizer and hash, {SETTINGS.bands} bands of {SETTINGS.rows} rows"
    )
    return said["seconds"], {int(number): cluster for number, cluster in said["clusters"].items()}


def exact(all_texts: list[str]) -> tuple[list[tuple[int, int]], dict[int, object]]:
    """All pairs at or above the threshold, and the clusters that they connect.

    A pair this similar shares one of its rarest shingles (prefix filter: Bayardo, Ma and Srikant 2007), so that only
    such pairs are compared, and none is missed.
    """
    sets = [shingle_set(text) for text in all_texts]
    often = Counter(shingle for some in sets for shingle in some)
    lying: dict[str, list[int]] = defaultdict(list)
    pairs = []
    for number, some in enumerate(sets):
        prefix = len(some) - int(SETTINGS.threshold * len(some) + 1 - 1e-9) + 1
        rarest = sorted(some, key=lambda shingle: (often[shingle], shingle))[:prefix]
        candidates = {other for shingle in rarest for other in lying[shingle]}
        for other in candidates:
            common = len(some & sets[other])
            if common / (len(some) + len(sets[other]) - common) >= SETTINGS.threshold:
                pairs.append((other, number))
        for shingle in rarest:
            lying[shingle].append(number)
    return pairs, connected(pairs)


def shingle_set(text: str) -> set[str]:
    words = WORD.findall(text.lower())
    size = SETTINGS.shingle_words
    return {" ".join(words[start : start + size]) for start in range(max(len(words) - size + 1, min(len(words), 1)))}


def connected(pairs: list[tuple[int, int]]) -> dict[int, object]:
    neighbours: dict[int, set[int]] = defaultdict(set)
    for one, other in pairs:
        neighbours[one].add(other)
        neighbours[other].add(one)
    groups: dict[int, object] = {}
    for start in neighbours:
        pending = [start]
        while pending:
            node = pending.pop()
            if node not in groups:
                groups[node] = start
                pending.extend(neighbours[node])
    return groups


def quality(found: Groups, *, pairs: list[tuple[int, int]], truth: Groups) -> str:
    together = sum(found.get(one, one) == found.get(other, other) for one, other in pairs if one in found)
    sizes = Counter(found.values())
    right = Counter((found[number], truth[number]) for number in found if number in truth)
    in_cluster = sum(comb(size, 2) for size in sizes.values())
    precision = sum(comb(size, 2) for size in right.values()) / max(in_cluster, 1)
    return f"recall {together / max(len(pairs), 1):.4f}, precision {precision:.4f}"


def summary(name: str, *, seconds: Mapping[str, float], found: Groups, documents: int, num_bytes: int) -> str:
    total = sum(seconds.values())
    stages = ", ".join(f"{stage} {took:.1f}" for stage, took in seconds.items())
    displaced = len(found) - len(set(found.values()))
    return (
        f"{name:<9} {documents / total:>8,.0f} documents/s a core, {num_bytes / total / 1e6:6.2f} MB/s "
        f"(CPU seconds: {stages}); {len(set(found.values())):,} clusters, {displaced:,} displaced"
    )


def write(all_texts: list[str], *, folder: Path) -> Path:
    """Writes the texts as Parquet, for us, and beside it as JSON lines."""
    folder.mkdir()
    columns = {"number": range(len(all_texts)), "sha256": map(sha256, all_texts), "text": all_texts}
    pq.write_table(
        pa.table({name: pa.array(list(values)) for name, values in columns.items()}), folder / "texts.parquet"
    )
    lines = "".join(json.dumps(text) + "\n" for text in all_texts)  # ASCII
    (folder / "texts.jsonl").write_text(lines, encoding="ascii")
    return folder / "texts.parquet"


def compare(spark: SparkSession, all_texts: list[str], *, datatrove: Path | None, folder: Path, known: bool) -> None:
    num_bytes = sum(len(text.encode()) for text in all_texts)
    print(f"\n{num_bytes / 1e6:.1f} MB, {len(all_texts):,} documents")
    source = write(all_texts, folder=folder)
    results = {"tessera": ours(spark, source, folder / "bands")}
    if datatrove is not None:
        results["datatrove"] = theirs(datatrove, source, folder / "datatrove")
    for name, (seconds, found) in results.items():
        print(summary(name, seconds=seconds, found=found, documents=len(all_texts), num_bytes=num_bytes), flush=True)
    if datatrove is not None:
        (mine, _), (other, _) = results["tessera"], results["datatrove"]
        ratios = {
            "whole": sum(other.values()) / sum(mine.values()),
            **{stage: other[stage] / mine[stage] for stage in mine},
        }
        print("times as fast: " + ", ".join(f"{stage} {ratio:.1f}" for stage, ratio in ratios.items()), flush=True)
    if known:
        pairs, truth = exact(all_texts)
        print(f"exactly {len(pairs):,} pairs, {len(set(truth.values())):,} clusters, {len(truth):,} documents in them")
        for name, (_, found) in results.items():
            print(f"{name:<9} {quality(found, pairs=pairs, truth=truth)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mb", type=int, nargs="+", default=[25, 50, 100])
    parser.add_argument("--datatrove", type=Path, default=Path(".venv-datatrove/bin/python"))
    given = parser.parse_args()
    datatrove = given.datatrove if given.datatrove.exists() else None
    if datatrove is None:
        print(f"{given.datatrove} is not there: Tessera alone", file=sys.stderr)
    sizes = sorted(size * 10**6 for size in given.mb)
    all_texts = beginning(corpus(), num_bytes=sizes[-1])
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        settings = SparkSettings(master="local[1]", driver_memory="2g")
        spark = spark_module.session(settings, home=Home(scratch / "home"))
        warming = write(beginning(all_texts, num_bytes=10**6), folder=scratch / "warm")
        ours(spark, warming, scratch / "warm" / "bands")
        for size in sizes:
            some = beginning(all_texts, num_bytes=size)
            compare(spark, some, datatrove=datatrove, folder=scratch / str(size), known=size == sizes[0])
        spark_module.stop()


if __name__ == "__main__":
    main()
