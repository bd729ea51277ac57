import json
import math
import resource

import pytest
import torch
from tests.train.conftest import TINY, metric_lines
from torch.nn import functional

from tessera.errors import ConfigError, ShardSetError, Superseded, TrainingFailed
from tessera.failpoints import InjectedFault
from tessera.lineage import sha256_file
from tessera.model.build import load
from tessera.shard.read.batches import batch_at, sequential
from tessera.train import heldout, memory
from tessera.train.loop import add_gradients, train


def finish(make_job, name, **changed):
    """Trains a run to its end; its result and metrics."""
    job = make_job(name, **changed)
    train(job)
    return job.folder.read_result(), metric_lines(job.folder)


def brute_force_nats(model, batch):
    """Each document on its own through the whole model with logits; summed nats."""
    total = 0.0
    for row in range(len(batch["input_ids"])):
        for document in range(int(batch["document_ids"][row].max()) + 1):
            where = batch["document_ids"][row] == document
            logits = model(input_ids=batch["input_ids"][row][where][None]).logits[0]
            total = total + functional.cross_entropy(logits, batch["labels"][row][where], reduction="sum")
    return total


def test_a_run_writes_a_line_a_step_and_a_model_that_has_learned(make_job):
    rates = {"optimizer": {"embedding_lr": 0.05}, "methods": {"muon": {"lr": 0.05}}}
    result, lines = finish(make_job, "a", steps=30, **rates)

    assert [line["step"] for line in lines] == list(range(31))
    assert result.steps == 30
    assert result.train_tokens == lines[-1]["tokens"]
    assert result.bits_per_byte_before == lines[0]["heldout_bits_per_byte"]
    assert result.bits_per_byte_after == lines[-1]["heldout_bits_per_byte"] < 0.7 * result.bits_per_byte_before
    assert "heldout_loss" not in lines[7]


@pytest.mark.parametrize(("stopped_after", "saved"), [(1, 0), (3, 2), (4, 2)])
def test_a_stopped_run_goes_on_to_the_same_weights_and_metrics(make_job, monkeypatch, stopped_after, saved):
    whole, whole_lines = finish(make_job, "whole")
    monkeypatch.setenv("TESSERA_FAIL", f"train.after_step:raise:{stopped_after}")
    with pytest.raises(InjectedFault):
        train(make_job("stopped"))
    monkeypatch.delenv("TESSERA_FAIL")
    resumed = make_job("stopped")

    assert resumed.progress.next_step == saved
    train(resumed)
    assert resumed.folder.read_result().weights_sha256 == whole.weights_sha256
    assert metric_lines(resumed.folder) == whole_lines


def test_a_run_stopped_between_its_last_checkpoint_and_its_record_finishes_without_a_step(make_job):
    whole, whole_lines = finish(make_job, "a")
    folder = make_job("a").folder
    folder.record.unlink()
    again, lines = finish(make_job, "a")

    assert again.model_copy(update={"seconds": 0.0}) == whole.model_copy(update={"seconds": 0.0})
    assert lines == whole_lines


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_micro_batches_only_change_the_last_bits(make_job, micro_batch):
    _, whole = finish(make_job, "whole")
    _, parts = finish(make_job, f"parts-{micro_batch}", micro_batch=micro_batch)

    for line, other in zip(whole, parts, strict=True):
        assert line == pytest.approx(other, abs=1e-4, rel=1e-4)


def test_the_gradient_is_the_mean_over_all_tokens_of_the_global_batch(make_job):
    job = make_job("a", micro_batch=3)
    for _ in range(2):  # the second time over what the first left behind
        counted = add_gradients(job)
    batch = batch_at(job.train, job.order, step=0, batch_size=8)
    parameters = list(job.model.parameters())
    nats = brute_force_nats(job.model, batch)
    wanted = torch.autograd.grad(nats, parameters)

    assert counted.tolist() == pytest.approx([nats.item(), float((batch["labels"] != -100).sum())], rel=1e-5)
    for value, gradient in zip(parameters, wanted, strict=True):
        assert (value.grad - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6


def test_heldout_bits_per_byte_are_those_of_the_whole_split(make_job, set_home):
    job = make_job("a", heldout={"sequences": 10_000})
    found = heldout.measure(job)
    nats = sum(brute_force_nats(job.model, batch).item() for batch in sequential(job.heldout, batch_size=7))

    assert found["heldout_loss"] == pytest.approx(nats / job.heldout.num_tokens, rel=1e-5)
    assert found["heldout_bits_per_byte"] == pytest.approx(nats / math.log(2) / job.heldout.text_bytes, rel=1e-5)


def test_a_heldout_limit_takes_exactly_the_first_sequences(make_job):
    job = make_job("a", heldout={"sequences": 5})
    batch = {name: value[:5] for name, value in next(sequential(job.heldout, batch_size=16)).items()}
    nats = brute_force_nats(job.model, batch).item()

    assert heldout.measure(job)["heldout_loss"] == pytest.approx(
        nats / float((batch["labels"] != -100).sum()), rel=1e-5
    )


def test_gradients_are_clipped_to_the_norm_and_reported_before(make_job):
    job = make_job("a", steps=1, methods={"clipping": {"norm": 1e-3}})
    train(job)

    assert metric_lines(job.folder)[1]["gradient_norm"] > 1e-2
    assert job.parallel.buffer.norm() == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(make_job, bad):
    job = make_job("a", steps=9)
    original = job.nats

    def spoil(part):
        if job.progress.next_step == 4:
            with torch.no_grad():
                job.model.get_input_embeddings().weight[:] = bad
        return original(part)

    job.nats = spoil
    with pytest.raises(TrainingFailed, match=r"step 5: the loss is nan .* the newest checkpoint is kept"):
        train(job)

    assert job.folder.read_result() is None
    again = make_job("a", steps=9)
    assert again.progress.next_step == 4
    assert all(value.isfinite().all() for value in again.model.parameters())
    assert [line["step"] for line in metric_lines(again.folder)] == [0, 1, 2, 3, 4]


def test_an_overtaken_attempt_commits_nothing(make_job):
    job = make_job("a")
    job.folder.attempt.write_text("2\n")
    with pytest.raises(Superseded, match="attempt 1 was overtaken by attempt 2"):
        train(job)

    assert not list(job.folder.checkpoints.glob("*/record.json"))
    assert job.folder.read_result() is None


def test_a_checkpoint_of_another_batch_size_or_seed_is_refused(make_job):
    finish(make_job, "a", steps=2)
    with pytest.raises(ShardSetError, match="batch_size 8, this run has 4"):
        make_job("a", batch_size=4)
    with pytest.raises(ShardSetError, match="seed 17, this run has 18"):
        make_job("a", seed=18)


def test_a_change_that_moves_the_last_bits_is_announced(make_job, monkeypatch):
    monkeypatch.setenv("TESSERA_FAIL", "train.after_step:raise:3")
    with pytest.raises(InjectedFault):
        train(make_job("a"))
    job = make_job("a", micro_batch=2)
    notices = [json.loads(line)["notice"] for line in job.folder.notices.read_text().splitlines()]

    assert notices[0] == "resumed after step 2"
    assert notices[1].startswith("order exact, sums not: micro_batch 8 -> 2")


def test_the_final_checkpoint_is_a_model_folder_with_its_tokenizer(make_job, set_home):
    result, lines = finish(make_job, "a", heldout={"sequences": 10_000})
    job = make_job("a")
    folder = job.folder.root / result.checkpoint
    model = load(folder)
    nats = sum(brute_force_nats(model, batch).item() for batch in sequential(job.heldout, batch_size=7))

    assert nats / math.log(2) / job.heldout.text_bytes == pytest.approx(result.bits_per_byte_after, rel=1e-5)
    assert result.weights_sha256 == sha256_file(folder / "model.safetensors")
    assert (folder / "tokenizer.json").read_bytes() == (set_home.tokenizers / "small/tokenizer.json").read_bytes()
    assert lines[-1]["step"] == 6


def test_bf16_products_and_pretrained_folders_train_too(make_job, tmp_path):
    result, _ = finish(make_job, "a", steps=2)
    start = str(make_job("a").folder.root / result.checkpoint)
    tuned, lines = finish(make_job, "tuned", steps=2, precision="bf16", model={"path": start})

    assert lines[0]["heldout_loss"] == pytest.approx(result.bits_per_byte_after * lines[0]["heldout_loss"]
                                                     / lines[0]["heldout_bits_per_byte"], rel=0.02)  # fmt: skip
    assert tuned.weights_sha256 != result.weights_sha256


def test_recomputed_activations_give_the_same_gradients(make_job):
    buffers = []
    for name, asked in (("kept", False), ("recomputed", True)):
        job = make_job(name, activation_checkpointing=asked)
        add_gradients(job)
        buffers.append(job.parallel.buffer)

    assert (buffers[0] - buffers[1]).norm() <= 1e-6 * buffers[0].norm()


def test_a_memory_budget_lowers_the_micro_batch_and_the_checkpoint_keeps_it(make_job):
    whole, whole_lines = finish(make_job, "whole")
    job = make_job("a")
    each = memory.kept_bytes(job)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    budget = held + int(3.5 * memory.BACKWARD * each) + 2**20 // 2
    memory.fit(job, budget_bytes=budget)

    assert 3 <= job.micro_batch < 8
    job.save()
    job.saver.wait()
    train(job)
    for line, other in zip(whole_lines, metric_lines(job.folder), strict=True):
        assert line == pytest.approx(other, abs=1e-4, rel=1e-4)
    again = make_job("a")
    assert again.micro_batch == job.micro_batch
    assert make_job("a", micro_batch=1).micro_batch == 1, "whoever asks for less gets less"
    assert whole.steps == job.folder.read_result().steps


def test_what_a_sequence_keeps_grows_with_it_and_shrinks_when_it_is_computed_again(make_job):
    small, large = make_job("small"), make_job("large", model={**TINY["model"], "layers": 4})
    again = make_job("again", activation_checkpointing=True)

    assert 1.6 < memory.kept_bytes(large) / memory.kept_bytes(small) < 2.4
    assert memory.kept_bytes(again) < 0.5 * memory.kept_bytes(small)


def test_a_budget_that_holds_nothing_is_refused_with_what_it_takes(make_job):
    with pytest.raises(ConfigError, match=r"train.memory_bytes is 1,048,576; a rank holds .* Give at least"):
        make_job("a", memory_bytes=2**20)
