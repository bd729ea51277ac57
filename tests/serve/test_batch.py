"""Scoring a table in Spark: each row once a version, whatever dies; answers checked against the engine itself."""

import dataclasses
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyarrow import parquet
from pydantic import ValidationError

from tessera import publish, tables
from tessera.errors import ConfigError, Conflict, ModelError, SourceError, TesseraError
from tessera.home import Home
from tessera.prepare import documents, sources
from tessera.prepare.settings import PrepareSettings
from tessera.serve import answers, batch
from tessera.serve.engine import Engine
from tessera.serve.register import register
from tessera.serve.score_settings import ScoreSettings, parse_template
from tessera.serve.settings import ServeSettings

CHILD = Path(__file__).parents[1] / "children" / "tests_score_child.py"
CANARY = "Zebra-Quasar-7741"
PROMPT = "Return {text} of {n}:"
TOKENS = 6  # as in the child
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("n", pa.int64())])
WORDS = ["the größte value", "a list", "None if it is empty", "the smallest 空 value", "ValueError"]


def rows_of(count):
    return [{"id": f"k{n}", "text": WORDS[n % len(WORDS)], "n": n} for n in range(count)]


def write(path, rows, *, mode="overwrite", schema=SCHEMA):
    write_deltalake(path, pa.Table.from_pylist(rows, schema=schema), mode=mode)


def doc_id_of(row, *, name="t"):
    key = json.dumps({"id": row["id"]}, separators=(",", ":"))
    return hashlib.sha256(f"{name}\n{key}".encode()).hexdigest()


def asked(row, prompt=PROMPT):
    return hashlib.sha256(prompt.format(**row).encode()).hexdigest()


@pytest.fixture(scope="session")
def registered(store):
    """Two versions of one model in the registry; `champion` is the first."""

    def make(evaluation, *, passed):
        register(
            store.home, train=store.train, prepare=store.prepare, tracking_uri=store.uri,
            evaluate=store.evaluate.model_copy(update={"fingerprint": evaluation, "passed": passed}),
            settings=ServeSettings(model_name="score.main"),
        )  # fmt: skip

    make("first", passed=True)
    make("second", passed=False)
    return store


@pytest.fixture(scope="session")
def model(registered):
    return answers.find_model(registered.uri, model="models:/score.main@champion", home=registered.home)


@pytest.fixture(scope="session")
def own_engine(model):
    return Engine(model.checkpoint)


@pytest.fixture
def source(tmp_path):
    write(tmp_path / "t", rows_of(40))
    return tmp_path / "t"


def score(spark, home, model, *, source, tell=lambda *_: None, **more):
    settings = ScoreSettings.model_validate(
        {"source": str(source), "prompt": PROMPT, "max_tokens": TOKENS, "slice_rows": 64, **more}
    )
    found = answers.find_source(settings, home=home, spark=lambda: spark)
    return batch.score(spark, source=found, settings=settings, model=model, home=home, tell=tell)


def answers_in(home):
    return tables.read(home.answers).to_pylist()


def answered(home):
    """(doc_id, prompt hash, model version), each as often as the table has it."""
    return Counter((row["doc_id"], row["prompt_sha256"], row["model_version"]) for row in answers_in(home))


def once(rows, *, version=1, prompt=PROMPT):
    return Counter((doc_id_of(row), asked(row, prompt), version) for row in rows)


@contextmanager
def failing(spark, value):
    """A fault in the workers, which take their environment from the Spark context."""
    environment = spark.sparkContext.environment
    environment["TESSERA_FAIL"] = value
    try:
        yield
    finally:
        del environment["TESSERA_FAIL"]


@pytest.mark.spark
def test_every_row_gets_the_answer_of_the_engine(spark, home, model, own_engine, source):
    record = score(spark, home, model, source=source, slice_rows=20)

    rows = {doc_id_of(row): row for row in rows_of(40)}
    found = answers_in(home)
    assert Counter(row["doc_id"] for row in found) == Counter(rows.keys())
    for row in found:
        given = rows[row["doc_id"]]
        wanted = own_engine.complete(PROMPT.format(**given), default_tokens=TOKENS)
        assert row["answer"] == wanted.text
        assert (row["tokens"], row["prompt_tokens"]) == (wanted.completion_tokens, wanted.prompt_tokens)
        assert row["finish_reason"] == wanted.finish_reason
        assert row["row_key"] == json.dumps({"id": given["id"]}, separators=(",", ":"))
        assert (row["source"], row["source_version"], row["model"]) == ("t", 0, "score.main")
        assert row["prompt_sha256"] == asked(given)
        assert row["seconds"] > 0
    assert len({row["answer"] for row in found}) > 20, "a model that says the same to everybody proves nothing"
    assert (record.model, record.version, record.weights_sha256) == ("score.main", 1, model.weights_sha256)
    assert (record.rows, record.answered, record.found, record.remaining, record.skipped) == (40, 40, 0, 0, {})
    assert record.tokens == sum(row["tokens"] for row in found)
    assert record.finished == Counter(row["finish_reason"] for row in found)
    assert record.slices > 1
    assert record.table.version == DeltaTable(home.answers).version() == record.slices - 1
    assert publish.read_record(home.answers) == record.model_dump(mode="json")


@pytest.mark.spark
def test_only_new_and_changed_rows_are_answered_until_the_version_or_the_request_changes(
    spark, home, model, registered, source
):
    rows = rows_of(40)
    score(spark, home, model, source=source)
    write(source, [{"id": "new", "text": "more", "n": 5}], mode="append")
    grown = score(spark, home, model, source=source)
    changed = {**rows[3], "text": "another text"}
    write(source, [*rows[:3], changed, *rows[4:]])
    mended = score(spark, home, model, source=source)
    again = score(spark, home, model, source=source)

    counts = [(record.answered, record.found, record.remaining) for record in (grown, mended, again)]
    assert counts == [(1, 40, 0), (1, 39, 0), (0, 40, 0)]
    assert again.table.version == mended.table.version == 2
    expected = once([*rows, {"id": "new", "text": "more", "n": 5}, changed])
    assert answered(home) == expected

    second = answers.find_model(registered.uri, model="models:/score.main/2", home=registered.home)
    assert score(spark, home, second, source=source).answered == 40
    assert answered(home) == expected + once([*rows[:3], changed, *rows[4:]], version=2)
    assert score(spark, home, model, source=source, max_tokens=3).answered == 40
    assert score(spark, home, model, source=source, seed=99).answered == 0, "greedy draws nothing"


@pytest.mark.spark
def test_a_limit_goes_on_the_next_time(spark, home, model, source):
    records = [score(spark, home, model, source=source, limit=25, slice_rows=16) for _ in range(2)]

    assert [record.answered for record in records] == [25, 15]
    assert [record.remaining for record in records] == [15, 0]
    assert answered(home) == once(rows_of(40))


def waiting(home):
    """The ids that wait in the folder of each slice."""
    folders = home.spill.glob("spark-score-*/slice=*")
    return {folder.name: set(parquet.read_table(folder)["doc_id"].to_pylist()) for folder in folders}


@pytest.mark.spark
def test_each_slice_has_a_folder_of_its_own_rows_that_goes_with_its_commit(spark, home, model, source):
    seen = []

    def tell(text, *_):
        if text == "answering":
            done = [doc_id for doc_id, *_ in answered(home)] if tables.exists(home.answers) else []
            seen.append((waiting(home), done))

    score(spark, home, model, source=source, limit=24, slice_rows=6, tell=tell)

    wanted = sorted(map(doc_id_of, rows_of(40)))[:24]
    first = seen[0][0]
    assert sorted(doc_id for ids in first.values() for doc_id in ids) == wanted
    assert all({int(doc_id[-8:], 16) % 4 for doc_id in ids} == {int(name[6:])} for name, ids in first.items())
    for slices, done in seen:
        assert sorted([*done, *(doc_id for ids in slices.values() for doc_id in ids)]) == wanted
    assert len(seen) == len(first) > 2
    assert list(home.spill.glob("spark-score-*")) == []


@pytest.mark.spark
def test_rows_that_cannot_be_asked_are_counted_and_long_prompts_have_a_reason(spark, home, model, tmp_path, capfd):
    odd = [
        {"id": None, "text": "no key", "n": 1},
        {"id": None, "text": "no key either", "n": 1},
        {"id": "a", "text": None, "n": 1},
        {"id": "b", "text": None, "n": None},
        {"id": "c", "text": "x", "n": None},
        {"id": "long", "text": CANARY * 40, "n": 1},
        {"id": "empty", "text": "", "n": 1},
    ]
    write(tmp_path / "t", [*odd, *rows_of(10)])

    record = score(spark, home, model, source=tmp_path / "t")

    assert record.skipped == {"null_in_n": 1, "null_in_text": 2, "null_key": 2}
    assert (record.rows, record.answered) == (17, 12)
    assert record.finished["prompt_too_long"] == 1
    (long,) = [row for row in answers_in(home) if row["finish_reason"] == "prompt_too_long"]
    assert (long["doc_id"], long["answer"], long["tokens"]) == (doc_id_of(odd[5]), None, 0)
    assert score(spark, home, model, source=tmp_path / "t").answered == 0
    logs = b"".join(file.read_bytes() for file in (home.answers / "_delta_log").iterdir() if file.is_file())
    assert CANARY.encode() not in logs
    assert b"minValues" in logs
    assert b"row_key" not in b"".join(line for line in logs.splitlines() if b"minValues" in line)
    assert CANARY not in "".join(capfd.readouterr())


@pytest.mark.spark
def test_keys_and_times_do_not_depend_on_the_session_and_text_that_is_not_utf8_is_counted(
    spark, home, model, own_engine, tmp_path
):
    moment = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    schema = pa.schema([("id", pa.int64()), ("at", pa.timestamp("us", tz="UTC")), ("on", pa.date32())])
    write(tmp_path / "t", [{"id": 7, "at": moment, "on": date(2026, 3, 29)}], schema=schema)
    spark.sql("SELECT CAST(X'52FF' AS STRING) AS text, 1 AS id").write.format("delta").save(str(tmp_path / "bad"))
    before = spark.conf.get("spark.sql.session.timeZone")
    spark.conf.set("spark.sql.session.timeZone", "Europe/Berlin")
    try:
        score(spark, home, model, source=tmp_path / "t", prompt="{{{at}}} {on}", id=["id", "at"], name="times")
    finally:
        spark.conf.set("spark.sql.session.timeZone", before)

    (row,) = answers_in(home)
    wanted = "{2026-03-29T01:30:00.000000Z} 2026-03-29"
    assert row["prompt_sha256"] == hashlib.sha256(wanted.encode()).hexdigest()
    assert row["answer"] == own_engine.complete(wanted, default_tokens=TOKENS).text
    assert row["row_key"] == '{"at":"2026-03-29T01:30:00.000Z","id":7}'
    with pytest.raises(SourceError, match=r"none of its 1 rows can be asked: \{'not_utf8': 1\}"):
        score(spark, home, model, source=tmp_path / "bad", prompt="{text}")


@pytest.mark.spark
def test_an_answer_and_a_document_of_one_row_have_one_id(spark, home, model, tmp_path):
    key = ["n", "a`b.c"]
    rows = [{"a`b.c": f"k{n}", "text": f"a text that is long enough to be a document {n}", "n": n} for n in range(30)]
    write(tmp_path / "t", rows, schema=None)
    settings = PrepareSettings.model_validate(
        {"sources": [{"path": str(tmp_path / "t"), "name": "wiki", "id": key}], "holdout": 0.3}
    )
    resolved = [sources.resolve(one, home=home) for one in settings.sources]
    documents.write_documents(spark, sources=resolved, settings=settings, fingerprint="f", home=home)

    score(spark, home, model, source=tmp_path / "t", name="wiki", id=key, prompt="{n}", max_tokens=1)

    keys = [json.dumps({"a`b.c": row["a`b.c"], "n": row["n"]}, separators=(",", ":")) for row in rows]
    assert {row["row_key"] for row in answers_in(home)} == set(keys)
    assert {row["doc_id"] for row in answers_in(home)} == {
        row["doc_id"] for row in tables.read(home.documents).to_pylist()
    }


@pytest.mark.spark
@pytest.mark.slow
def test_draws_depend_on_seed_and_row_alone(spark, tmp_path, model, source):
    def drawn(number, **more):
        home = Home(tmp_path / f"home{number}")
        score(spark, home, model, source=source, temperature=1.0, **more)
        return {row["doc_id"]: row["answer"] for row in answers_in(home)}

    first, sliced, other = drawn(1), drawn(2, slice_rows=20), drawn(3, seed=18)

    assert first == sliced
    assert sum(first[key] != other[key] for key in first) > 30
    assert batch.row_seed(17, doc_id="a") != batch.row_seed(17, doc_id="b")


@pytest.mark.spark
@pytest.mark.parametrize("first_slices", [0, 1])
def test_of_two_scorers_one_wins_and_no_row_is_answered_twice(spark, home, model, source, first_slices):
    """The other scorer does all its work while ours is at a slice."""
    at, other = [], []

    def tell(text, done=None, total=None):
        if text == "answering" and not other and len(at) == first_slices:
            other.append(score(spark, home, model, source=source))
        at.append(text) if text == "answering" else None

    with pytest.raises(Conflict, match=rf"another writer .* the {first_slices} before it stay"):
        score(spark, home, model, source=source, slice_rows=10, tell=tell)

    assert other[0].remaining == 0
    assert (other[0].found > 0) == (first_slices > 0)
    assert answered(home) == once(rows_of(40))


@pytest.mark.spark
@pytest.mark.slow
def test_a_commit_that_is_no_scorers_is_a_conflict_too(spark, home, model, source):
    """Compaction in mid-run: what was pending was compared with another version, so nothing is added on trust."""
    score(spark, home, model, source=source, limit=20, slice_rows=10)

    def compact(text, *_):
        if text == "answering":
            DeltaTable(home.answers).optimize.compact()

    with pytest.raises(Conflict):
        score(spark, home, model, source=source, tell=compact)

    assert sum(answered(home).values()) == 20
    assert score(spark, home, model, source=source).answered == 20
    assert answered(home) == once(rows_of(40))


@pytest.mark.spark
@pytest.mark.slow
def test_a_worker_that_dies_and_is_replaced_adds_nothing(spark, home, model, source, tmp_path):
    marker = tmp_path / "died once"
    with failing(spark, f"score.after_row:kill:1:{marker}"):
        score(spark, home, model, source=source)

    assert marker.exists()
    assert answered(home) == once(rows_of(40))


def child_of(home, source, registered, *, fail=None):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **({"TESSERA_FAIL": fail} if fail else {})}
    arguments = [str(home.root), str(source), registered.uri, str(registered.home.root), PROMPT]
    return subprocess.Popen(
        [sys.executable, str(CHILD), *arguments], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def check_partial(home, rows):
    """Whole slices only: each commit's record says how many rows there are, and each is there once."""
    if not tables.exists(home.answers):
        return 0
    record = publish.read_record(home.answers)
    found = answered(home)
    assert not found - once(rows)
    assert sum(found.values()) == record["found"] + record["answered"]
    return sum(found.values())


@pytest.mark.spark
@pytest.mark.slow
def test_killed_at_each_point_and_run_again_each_row_is_answered_exactly_once(
    spark, home, model, registered, own_engine, source
):
    rows = [{**row, "text": f"{row['text']} {CANARY}"} for row in rows_of(40)]
    write(source, rows)
    have = []
    for fail in ("score.before_commit:kill:2", "score.after_slice:kill:1"):
        child = child_of(home, source, registered, fail=fail)
        said = "".join(child.communicate(timeout=200))
        assert child.returncode == -9, said
        assert CANARY not in said
        assert CANARY not in (home.spill / "jvm.log").read_text(errors="replace")
        have.append(check_partial(home, rows))
    assert 0 < have[0] < have[1] < 40

    record = score(spark, home, model, source=source)

    assert (record.found, record.answered, record.remaining) == (have[1], 40 - have[1], 0)
    assert answered(home) == once(rows)
    for row in answers_in(home):
        given = next(given for given in rows if doc_id_of(given) == row["doc_id"])
        assert row["answer"] == own_engine.complete(PROMPT.format(**given), default_tokens=TOKENS).text


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_a_random_moment_and_run_again_each_row_is_answered_exactly_once(
    spark, home, model, registered, source, seed
):
    moment = random.Random(seed)
    child = child_of(home, source, registered)
    for _ in range(moment.randint(1, 5)):
        while child.stdout.readline().split()[:1] != ["answering"]:
            assert child.poll() is None, child.stderr.read()
    time.sleep(moment.uniform(0.0, 2.0))
    child.kill()
    child.communicate(timeout=60)
    have = check_partial(home, rows_of(40))

    record = score(spark, home, model, source=source)

    assert (record.found, record.answered) == (have, 40 - have)
    assert answered(home) == once(rows_of(40))


@pytest.mark.spark
def test_repeated_keys_wrong_filters_and_empty_tables_are_refused_before_a_write(spark, home, model, source):
    write(source, [{"id": "k1", "text": CANARY, "n": 1}], mode="append")

    with pytest.raises(SourceError, match=r"1 row keys \(id\) occur more than once, in 2 rows; .*--id") as error:
        score(spark, home, model, source=source)
    assert CANARY not in str(error.value)
    for more, expected in (({"where": "no_such = 1"}, "not SQL"), ({"where": "n > 99"}, "no rows to score")):
        with pytest.raises(SourceError, match=expected):
            score(spark, home, model, source=source, **more)
    assert not tables.exists(home.answers)
    assert score(spark, home, model, source=source, where=f"text <> '{CANARY}' AND n < 4").answered == 4
    assert score(spark, home, model, source=source, version=0).found == 4


@pytest.mark.spark
def test_a_whole_result_is_recognised_without_spark_until_something_touches_it(spark, home, model, source):
    settings = ScoreSettings(source=str(source), prompt=PROMPT, max_tokens=2)
    found = answers.find_source(settings, home=home)
    partial = batch.score(
        spark, source=found, settings=settings.model_copy(update={"limit": 9}), model=model, home=home
    )
    whole = batch.score(spark, source=found, settings=settings, model=model, home=home)
    assert partial.fingerprint == whole.fingerprint == answers.fingerprint(found, settings=settings, model=model)
    assert not answers.verify(partial, source=found, home=home)
    assert answers.verify(whole, source=found, home=home)

    write(source, rows_of(41))
    grown = answers.find_source(settings, home=home)
    assert answers.fingerprint(grown, settings=settings, model=model) != whole.fingerprint
    batch.score(spark, source=grown, settings=settings, model=model, home=home)
    assert answers.verify(whole, source=found, home=home), "later slices only add"
    gone = doc_id_of(rows_of(1)[0])
    DeltaTable(home.answers).delete(f"doc_id = '{gone}'")
    assert not answers.verify(whole, source=found, home=home)
    assert batch.score(spark, source=found, settings=settings, model=model, home=home).answered == 1


@pytest.mark.spark
@pytest.mark.slow
def test_a_changed_checkpoint_is_named_and_nothing_is_written(spark, home, model, source):
    with pytest.raises(ModelError, match="found weights"):
        score(spark, home, dataclasses.replace(model, weights_sha256="0" * 64), source=source)

    assert not tables.exists(home.answers)


def test_a_worker_names_the_kind_and_place_of_a_failure_and_no_text(own_engine, model):
    class Broken:
        def complete(self, prompt, **options):
            raise RuntimeError(prompt)

    with pytest.raises(
        TesseraError, match=r"doc_id abc cannot be answered: RuntimeError at test_batch.py:\d+"
    ) as error:
        batch._answer_row(Broken(), CANARY, options={}, doc_id="abc")

    assert CANARY not in str(error.value)
    assert error.value.__suppress_context__


def test_templates_are_columns_in_text():
    assert parse_template("a {x} b {{y}} {z z}") == (("a ", "x"), (" b {", None), ("y}", None), (" ", "z z"))
    for template in ("", "no column", "{{x}}", "{", "}", "{}", "{a.b}", "{a[0]}", "{a!r}", "{a:>3}", "{a{b}}"):
        with pytest.raises(ValueError, match=r"template|names"):
            parse_template(template)
        with pytest.raises(ValidationError):
            ScoreSettings(source="t", prompt=template)


def test_a_wrong_table_or_column_is_answered_without_a_jvm(home, source):
    write(home.tables / "here", rows_of(1))
    write(
        home.tables / "nested",
        [{"id": "a", "list": [1]}],
        schema=pa.schema([("id", pa.string()), ("list", pa.list_(pa.int64()))]),
    )

    def find(**settings):
        return answers.find_source(ScoreSettings.model_validate(settings), home=home)

    for settings, error, expected in (
        ({"prompt": "{text}"}, ConfigError, "--source"),
        ({"source": "here"}, ConfigError, "--prompt"),
        ({"source": "there", "prompt": "{text}"}, SourceError, r"no table there .*it holds: here, nested"),
        ({"source": "/no/such/t", "prompt": "{text}"}, SourceError, "not a Delta table"),
        ({"source": "here", "prompt": "{txt}"}, SourceError, r"no column 'txt' for --prompt; it has: id, text, n"),
        ({"source": "here", "prompt": "{text}", "id": "key"}, SourceError, r"'key' for --id; it has: id, text, n"),
        ({"source": "here", "prompt": "{text}", "version": 4}, SourceError, "versions 0 to 0, wanted 4"),
        ({"source": "nested", "prompt": "{list}"}, SourceError, "is of type array"),
    ):
        with pytest.raises(error, match=expected):
            find(**settings)
    named = find(source="here", prompt="{text}")
    assert (named.pinned.name, named.pinned.path, named.pinned.version) == ("here", "tables/here", 0)
    assert find(source=str(source), prompt="{text}").pinned.name == "t"
    script = (
        "import sys\nfrom tessera.serve import answers\n"
        "assert not {'pyspark', 'torch', 'mlflow', 'transformers'} & set(sys.modules), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_missing_alias_says_what_there_is_and_a_foreign_version_is_refused(registered):
    with pytest.raises(ModelError, match=r"score.main has versions 1 to 2 and aliases challenger, champion"):
        answers.find_model(registered.uri, model="models:/score.main@gold", home=registered.home)
    with pytest.raises(ModelError, match="no registered model absent"):
        answers.find_model(registered.uri, model="models:/absent@champion", home=registered.home)


@pytest.mark.parametrize(
    ("num_rows", "slice_rows", "expected"), [(1, 512, 1), (512, 512, 1), (513, 512, 2), (1100, 512, 4), (9, 1, 16)]
)
def test_slices_are_a_power_of_two_that_holds_them(num_rows, slice_rows, expected):
    assert answers.num_slices(num_rows, slice_rows=slice_rows) == expected
