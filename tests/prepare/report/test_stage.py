"""The whole report on real tables and a real MLflow store; text of documents never leaves the home."""

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from tests.prepare.report.decisions import decision, hashed, write

from tessera import tracking
from tessera.config import EXECUTION
from tessera.home import Home
from tessera.lineage import PrepareRecord, TableVersion
from tessera.prepare.report import stage
from tessera.prepare.report.counts import Count, Counts
from tessera.prepare.report.samples import MAX_BYTES, MAX_CHARS, read_samples
from tessera.prepare.report.settings import ReportSettings
from tessera.prepare.report.table import read_counts
from tessera.tracking import TrackingSettings

TRACKING = TrackingSettings(experiment="lab")
AWAY = TrackingSettings(uri="http://127.0.0.1:9")
SECRET = "the seal sleeps at noon <b>"
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()), ("source", pa.string()), ("kind", pa.string()), ("split", pa.string()),
        ("text", pa.string()), ("messages", MESSAGES), ("prompt", pa.string()), ("chosen", pa.string()),
        ("rejected", pa.string()), ("num_bytes", pa.int64()),
    ]
)  # fmt: skip


def document(number: int, **values: object) -> dict[str, object]:
    base = {"doc_id": hashed(number), "source": "wiki", "kind": "text", "split": "train", "num_bytes": 100}
    return {**base, **({} if "messages" in values or "prompt" in values else {"text": f"{SECRET} {number}"}), **values}


def write_documents(home: Home, *rows: dict[str, object]) -> TableVersion:
    write_deltalake(home.documents, pa.Table.from_pylist(list(rows), schema=SCHEMA), mode="overwrite")
    return TableVersion(name="documents", path="tables/documents", version=0)


@pytest.fixture
def record(home: Home) -> PrepareRecord:
    """Of two documents of three rows."""
    decided = (decision(1), decision(2, num_bytes=300), decision(3, reason="duplicate", sha256=hashed(1)))
    return PrepareRecord(
        fingerprint="f" * 64, created="2026-11-23T08:00:00.000000+00:00", seconds=2.5, rows=3, documents=2,
        dropped={"duplicate": 1}, splits={"train": 2}, num_bytes=400, moved=1, code="abc",
        inputs=(TableVersion(name="wiki", path="tables/wiki", version=5),),
        table=write_documents(home, *map(document, (1, 2))),
        decisions=write(home, *decided),
    )  # fmt: skip


def report(
    home: Home, record: PrepareRecord, *, to: TrackingSettings = AWAY, told: list[str] | None = None, **settings: object
) -> stage.Report:
    def tell(text: str, *_: object) -> None:
        if told is not None:
            told.append(text)

    return stage.write_report(home, record=record, settings=ReportSettings(**settings), tracking_settings=to, tell=tell)


def test_page_table_and_run_are_written_and_agree(home, record):
    found = report(home, record, to=TRACKING)

    assert found.page == home.reports / "prepare.html"
    assert [path.name for path in home.reports.iterdir()] == ["prepare.html"]
    assert read_counts(home, documents=record.table) == found.counts
    run = tracking.client(tracking.tracking_uri(TRACKING, home=home)).get_run(found.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.start_time == 1_795_420_797_500
    assert run.data.metrics == {
        "rows": 3, "documents": 2, "documents/train": 2, "dropped": 1, "dropped/duplicate": 1, "bytes": 400,
        "tokens": 100, "exact_displaced": 1, "moved": 1, "bytes_per_token": 4,
    }  # fmt: skip
    assert run.data.tags["tessera.kind"] == "prepare"
    assert run.data.tags["tessera.table.decisions"] == "tables/decisions@0"
    assert [(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs] == [("wiki", "v5")]
    assert artifact(home, found.run_id) == found.page.read_text(encoding="utf-8")
    assert report(home, record, to=TRACKING).run_id == found.run_id


def test_text_is_shown_in_the_home_alone(home, record):
    found = report(home, record, to=TRACKING, show_text=True)

    assert found.page.read_text(encoding="utf-8").count("the seal sleeps at noon &lt;b&gt;") == 2
    assert "the seal" not in artifact(home, found.run_id)
    holding = [path for path in home.root.rglob("*") if path.is_file() and b"the seal" in path.read_bytes()]
    assert {path.relative_to(home.root).parts[0] for path in holding} == {"reports", "tables"}
    assert not [path for path in holding if "documents" not in path.parts and path != found.page]


def test_without_show_text_no_text_is_read(home, record):
    (home.documents / "_delta_log" / "00000000000000000000.json").unlink()

    assert "the seal" not in report(home, record, samples=5).page.read_text(encoding="utf-8")


def test_forgetting_removes_the_page_and_what_a_killed_writer_left(home, record):
    page = report(home, record, show_text=True).page
    left = page.with_name(".prepare.html.123")
    left.write_text("text")
    other = home.reports / "map.html"
    other.write_text("map")

    assert sorted(stage.forget(home)) == sorted([page, left])
    assert list(home.reports.iterdir()) == [other]
    assert stage.forget(home) == []


def test_without_a_page_only_the_table_is_written(home, record):
    found = report(home, record, to=TRACKING, page=False)

    assert (found.page, found.run_id) == (None, "")
    assert read_counts(home, documents=record.table) == found.counts
    assert not home.mlflow_database.exists()
    assert not home.reports.exists()


def test_without_mlflow_the_page_is_there_and_the_reason_told(home, record):
    told: list[str] = []
    found = report(home, record, told=told)

    assert found.run_id == ""
    assert found.page.is_file()
    assert told[-1] == "MLflow did not take the report (the connection was refused); it is in reports/prepare.html"


def test_metric_names_are_what_mlflow_takes():
    sets = ("exam; drop", "exam: drop", "x" * 400)
    entries = tuple(Count("a", "text", "contaminated", name, 2) for name in sets)
    table = TableVersion(name="documents", path="tables/documents", version=0)

    assert stage.metrics(Counts(table, table, entries)) == {
        "contaminated": 6, "contaminated/exam_ drop": 4, f"contaminated/{'x' * 237}": 2,
    }  # fmt: skip


def test_what_is_shown_changes_no_documents():
    assert ReportSettings().identity() == {}
    assert not ReportSettings().show_text
    assert all(field.json_schema_extra == EXECUTION for field in ReportSettings.model_fields.values())


def test_samples_are_few_short_and_the_same_ones_of_every_source(home):
    sources = ("wiki", "it's", "none")
    rows = [document(number, source=sources[number % 2], text=f"{number} " + "x" * 900) for number in range(40)]
    table = write_documents(home, *rows, document(0, source="wiki", doc_id="0" * 64, num_bytes=MAX_BYTES + 1))
    found = read_samples(home, documents=table, sources=sources, number=3)

    wanted = [
        doc_id
        for source in sources
        for doc_id in sorted(str(row["doc_id"]) for row in rows if row["source"] == source)[:3]
    ]
    assert [one.doc_id for one in found] == wanted
    assert all(len(one.text) == MAX_CHARS for one in found)
    assert all(one.text.endswith("x…") for one in found)
    assert read_samples(home, documents=table, sources=sources, number=0) == []


def test_every_kind_is_shown_as_text_without_control_characters(home):
    turns = [{"role": "user", "content": "How?\x1b[31m"}, {"role": "assistant", "content": "So.\tThus"}]
    table = write_documents(
        home,
        document(1, source="chat", kind="chat", messages=turns),
        document(2, source="pairs", kind="preference", prompt="P", chosen="C", rejected="R\x00"),
    )
    found = read_samples(home, documents=table, sources=["chat", "pairs"], number=1)

    assert [one.text for one in found] == [
        "user: How?\N{REPLACEMENT CHARACTER}[31m\nassistant: So.\tThus",
        "prompt: P\nchosen: C\nrejected: R\N{REPLACEMENT CHARACTER}",
    ]


def artifact(home: Home, run_id: str) -> str:
    """The page as MLflow keeps it."""
    client = tracking.client(tracking.tracking_uri(TRACKING, home=home))
    return Path(client.download_artifacts(run_id, "prepare.html")).read_text(encoding="utf-8")
