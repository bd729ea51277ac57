"""What a person reads at the end: every number of the records, within 80 columns."""

from rich.console import Console

from tessera import report
from tessera.lineage import EvaluateRecord, PrepareRecord, Record, ServeRecord, TableVersion

TABLE = TableVersion(name="t", path="tables/t", version=3)
COMMON = {"fingerprint": "f", "seconds": 1.5}
RECORDS: list[Record] = [
    PrepareRecord(
        rows=1234, documents=1200, dropped={"blank": 4, "duplicate": 30}, splits={"train": 1100, "heldout": 100},
        num_bytes=9, table=TABLE, **COMMON,
    ),
    EvaluateRecord(
        run_id="r", checkpoint="c", weights_sha256="w", bits_per_byte=1.91234, baselines={"gzip": 2.5, "trigram": 1.8},
        passed=False, reasons=("bits per byte 1.9123 is not below 1.8000, the trigram",), table=TABLE, **COMMON,
    ),
    ServeRecord(
        model="docs", version=7, aliases=("challenger",), run_id="r", weights_sha256="w", reused=True, **COMMON
    ),
]  # fmt: skip


def printed(width: int) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(report.table(RECORDS, mlflow_command="mlflow ui --backend-store-uri sqlite:///x"))
    return console.export_text()


def test_the_table_holds_the_numbers_and_fits_a_terminal() -> None:
    text = printed(80)

    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    for expected in ("1,234", "1,200 (100 held out)", "4 blank, 30 duplicate", "1.912", "gzip 2.500, trigram 1.800"):
        assert expected in text
    assert "docs version 7 (challenger)" in text
    assert "is not below 1.8000, the trigram" in text
    assert "mlflow ui" in text


def test_a_narrow_terminal_loses_nothing() -> None:
    assert "".join(printed(40).split()) == "".join(printed(80).split())


def test_a_stage_line_says_what_was_found() -> None:
    assert report.line(RECORDS[2]) == "serve       found  docs version 7: challenger"
    assert report.line(RECORDS[0]).startswith("prepare     1.5 s  1,200 documents@3")


def test_history_shows_failed_rows_too() -> None:
    done = {
        "stage": "prepare",
        "at": "2026-11-23T10:00:00",
        "status": "done",
        "seconds": 1.5,
        "record": RECORDS[0].to_json(),
    }
    failed = {"stage": "train", "at": "2026-11-23T10:01:00", "status": "failed", "seconds": 2.0}
    failed["record"] = Record(stage="train", fingerprint="f", error="rank 1 was killed").to_json()
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115

    console.print(report.history([done, failed]))

    text = console.export_text()
    assert "1,200 documents@3" in text
    assert "failed" in text
    assert "rank 1 was killed" in text
