"""Every notebook is committed without outputs, runs from top to bottom, and shows what it says it shows."""

import base64
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALL = [
    "sample.packages=[networkx]", "shard.seq_len=64", "shard.tokenizer.vocab_size=512",
    "shard.tokenizer.sample_bytes=200000", "train.steps=40", "train.batch_size=8", "train.heldout.sequences=16",
    "train.heldout.every_steps=20", "train.model={layers: 2, width: 32, heads: 2, kv_heads: 2, ffn_width: 64}",
    "evaluate.gate={max_bits_per_byte: 9.0, beat: []}", "serve.model_name=notebook", "serve.max_tokens=8",
]  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]

    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1


@pytest.mark.spark
@pytest.mark.distributed
@pytest.mark.timeout(500)
def test_the_quickstart_runs_and_shows_tables_plots_an_answer_and_lineage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSERA_HOME", str(tmp_path / "home"))
    notebook = nbformat.read(FOLDER / "quickstart.ipynb", as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = f"TARGET = 'local'\nSET = {SMALL!r}"

    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [data(output, "image/png") for output in outputs if data(output, "image/png")]
    for number, picture in enumerate(pictures):
        (tmp_path / f"{number}.png").write_bytes(base64.b64decode(picture))
    printed = "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")
    tables = [data(output, "text/html") for output in outputs if data(output, "text/html")]
    assert len(pictures) == 4
    assert len(tables) == 4
    assert "notebook version 1 (challenger, champion)" in printed
    assert "Return the" in printed
    (lineage,) = [table for table in tables if "shard set" in table]
    assert "python_docs" in lineage


def data(output: Any, kind: str) -> str:
    """What an output holds of a media type; nothing for printed text."""
    return str(output.get("data", {}).get(kind, ""))
