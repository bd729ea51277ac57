import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tessera.errors import CorruptCheckpoint, ModelError
from tessera.model.build import assign, read_weights
from tessera.train import checkpoint
from tessera.train.loop import train


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def folder(make_job):
    """A finished run with checkpoints after steps 4 and 6."""
    job = make_job("a")
    train(job)
    return job.folder


def restore(found, job):
    """A checkpoint's values into a job that is open, as a rewind does it."""
    assign(job.model, read_weights(found.folder), origin=found.folder)
    checkpoint.restore_tensors(found, tensors=job.tensors(), like=job.parallel.like)


def notices_of(folder):
    heard: list[str] = []
    found = checkpoint.newest(folder.checkpoints, notice=heard.append)
    return found, heard


def test_only_the_newest_are_kept(folder):
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-00000004", "step-00000006"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flipped bit": lambda step: flip(step / "model.safetensors"),
    "flipped bit in the optimizer": lambda step: flip(step / "optimizer.safetensors"),
    "cut short": lambda step: (step / "model.safetensors").write_bytes(b"\0" * 100),
    "missing file": lambda step: (step / "tokenizer.json").unlink(),
    "missing record": lambda step: (step / "record.json").unlink(),
    "torn record": lambda step: (step / "record.json").write_text('{"files": {'),
    "record of a list": lambda step: (step / "record.json").write_text("[]"),
    "record without files": lambda step: (step / "record.json").write_text('{"format": 1, "files": {}}'),
    "record that leads outside": lambda step: (step / "record.json").write_text(
        (step / "record.json").read_text().replace('"tokenizer.json"', '"../step-00000004/tokenizer.json"')
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_with_a_notice(folder, damage):
    damage(folder.checkpoints / "step-00000006")
    found, heard = notices_of(folder)

    assert found.folder.name == "step-00000004"
    assert found.state["num_steps"] == 4
    assert len(heard) == 1
    assert heard[0].startswith("checkpoint step-00000006")


def test_a_run_whose_newest_checkpoint_is_damaged_trains_to_the_same_end(folder, make_job):
    whole = folder.read_result()
    flip(folder.checkpoints / "step-00000006/model.safetensors")
    folder.record.unlink()
    again = make_job("a")

    assert again.progress.next_step == 4
    assert "SHA-256" in folder.notices.read_text()
    train(again)
    assert again.folder.read_result().weights_sha256 == whole.weights_sha256
    assert notices_of(folder)[1] == []


def test_without_a_whole_checkpoint_there_is_none(folder):
    for step in folder.checkpoints.iterdir():
        (step / "record.json").unlink()
    found, heard = notices_of(folder)

    assert found is None
    assert len(heard) == 2


def test_no_checkpoint_holds_a_pickle_and_a_planted_one_is_not_run(folder, make_job, tmp_path):
    """Even with a record that vouches for it."""
    step = folder.checkpoints / "step-00000006"
    assert {path.suffix for path in step.iterdir()} == {".json", ".safetensors"}
    for name in ("model.safetensors", "optimizer.safetensors"):
        copy = tmp_path / name
        shutil.copytree(step, copy)
        torch.save({"x": Payload(tmp_path / "ran")}, copy / name)
        record = json.loads((copy / "record.json").read_text())
        record["files"][name] = {
            "bytes": (copy / name).stat().st_size, "sha256": checkpoint.sha256_file(copy / name)
        }  # fmt: skip
        (copy / "record.json").write_text(json.dumps(record))
        job = make_job("other")
        with pytest.raises((ModelError, CorruptCheckpoint), match="readable"):
            restore(checkpoint.open_checkpoint(copy), job)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_another_architecture_names_keys(folder, make_job):
    other = make_job("other", model={"layers": 3, "width": 32, "heads": 2, "kv_heads": 1, "ffn_width": 48})
    found, _ = notices_of(folder)
    with pytest.raises(ModelError, match=r"lacks model\.layers\.2"):
        restore(found, other)


def test_restoring_gives_back_every_tensor(folder, make_job):
    found, _ = notices_of(folder)
    job = make_job("other")
    restore(found, job)

    for name, value in load_file(found.folder / "optimizer.safetensors").items():
        assert torch.equal(job.tensors()[name], value)
    for name, value in load_file(found.folder / "model.safetensors").items():
        assert torch.equal(job.model.state_dict()[name], value)
    assert found.state["num_steps"] == 6


def test_what_is_before_the_commit_may_stop_it(folder, make_job, tmp_path):
    job = make_job("other")

    def refuse() -> None:
        raise RuntimeError("no")

    values = checkpoint.take(job.model, tensors=job.tensors())
    with pytest.raises(RuntimeError, match="no"):
        checkpoint.save(
            tmp_path / "step-00000001", model=job.model, values=values, state={"num_steps": 1},
            tokenizer_folder=job.folder.home.resolve("tokenizers/small"), before_commit=refuse,
        )  # fmt: skip
    with pytest.raises(CorruptCheckpoint, match="was not finished"):
        checkpoint.open_checkpoint(tmp_path / "step-00000001")
