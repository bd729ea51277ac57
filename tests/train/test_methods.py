"""Training methods: each can be left out, changes what it says and no more, and is gone on with exactly."""

import random
import textwrap

import pytest
import torch
from tests.train.conftest import metric_lines, run_ranks

from tessera import failpoints
from tessera.config import Layer, load
from tessera.errors import ConfigError
from tessera.failpoints import InjectedFault
from tessera.model.loss import whole_cross_entropy
from tessera.train import method
from tessera.train.arrange import one_document_a_row
from tessera.train.loop import add_gradients, train
from tessera.train.method import Methods
from tessera.train.parallel import Replicated
from tessera.train.ranks import Ranks
from tessera.train.settings import TrainSettings

MIXTURE = {
    "layers": 2, "width": 32, "heads": 2, "kv_heads": 1, "experts": {"count": 8, "active": 2, "width": 16}
}  # fmt: skip
NONE = {name: {"strength": 0} for name in method.classes()}
CHANGED = {
    "packing": {"strength": 0}, "chunked_loss": {"chunk": 7}, "clipping": {"norm": 0.05}, "wsd": {"decay": 0.2},
    "muon": {"strength": 0},
}  # fmt: skip


def gradients_of(job, *, dtype=torch.float32):
    """The mean gradient of the first global batch."""
    job.model.to(dtype)
    job.parallel = Replicated(job.model, ranks=Ranks())
    nats, tokens = add_gradients(job).tolist()
    job.parallel.mean(tokens)
    return job.parallel.buffer, nats


def weights_after(make_job, name, **changed):
    job = make_job(name, **changed)
    train(job)
    return job.folder.read_result().weights_sha256


def test_without_methods_the_trainer_is_a_plain_one(make_job):
    job = make_job("plain", methods=NONE)

    assert list(job.methods) == []
    assert job.cross_entropy is whole_cross_entropy
    assert job.optimizer.kinds.matrices
    assert next(iter(job.parts()))["document_ids"].max() == 0
    train(job)
    assert {line["learning_rate"] for line in metric_lines(job.folder)[1:]} == {0.003}


@pytest.mark.parametrize("name", sorted(CHANGED))
def test_a_method_without_strength_is_one_that_is_not_there(make_job, monkeypatch, name):
    without = weights_after(make_job, "without", methods={name: {"strength": 0}})
    known = {key: value for key, value in method.classes().items() if key != name}
    monkeypatch.setattr(
        method, "make", lambda given, job: Methods({key: known[key](given.active[key], job=job) for key in known})
    )

    assert weights_after(make_job, "absent") == without


@pytest.mark.parametrize("name", sorted(CHANGED))
def test_each_method_is_gone_on_with_exactly(make_job, monkeypatch, name):
    changed = {"methods": {name: CHANGED[name]}}
    whole = weights_after(make_job, "whole", **changed)
    assert whole != weights_after(make_job, "other")
    monkeypatch.setenv("TESSERA_FAIL", "train.after_step:raise:3")
    with pytest.raises(InjectedFault):
        train(make_job("stopped", **changed))
    monkeypatch.delenv("TESSERA_FAIL")

    assert weights_after(make_job, "stopped", **changed) == whole


@pytest.mark.parametrize("seed", range(3))
def test_any_set_of_methods_is_gone_on_with_exactly(make_job, monkeypatch, seed):
    drawn = random.Random(seed)
    chosen = {name: CHANGED[name] if drawn.random() < 0.5 else {} for name in CHANGED}
    whole = weights_after(make_job, "whole", methods=chosen)
    for stop in (drawn.randrange(1, 4), drawn.randrange(1, 3)):
        failpoints._passed.clear()
        monkeypatch.setenv("TESSERA_FAIL", f"train.after_step:raise:{stop}")
        with pytest.raises(InjectedFault):
            train(make_job("stopped", methods=chosen))
        monkeypatch.delenv("TESSERA_FAIL")

    assert weights_after(make_job, "stopped", methods=chosen) == whole, (seed, chosen)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_packed_gradients_are_those_of_each_document_alone(make_job, dtype, tolerance):
    packed, nats = gradients_of(make_job("packed"), dtype=dtype)
    alone, other = gradients_of(make_job("alone", methods={"packing": {"strength": 0}}), dtype=dtype)

    assert nats == pytest.approx(other, rel=tolerance)
    assert (packed - alone).norm() <= tolerance * packed.norm()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5])
def test_accumulated_gradients_are_those_of_the_whole_batch(make_job, micro_batch, dtype, tolerance):
    whole, nats = gradients_of(make_job("whole"), dtype=dtype)
    parts, other = gradients_of(make_job("parts", micro_batch=micro_batch), dtype=dtype)

    assert nats == pytest.approx(other, rel=tolerance)
    assert (whole - parts).norm() <= tolerance * whole.norm()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_the_chunked_loss_is_the_whole_one(make_job, dtype, tolerance):
    chunked, nats = gradients_of(make_job("chunked", methods={"chunked_loss": {"chunk": 7}}), dtype=dtype)
    whole, other = gradients_of(make_job("whole", methods={"chunked_loss": {"strength": 0}}), dtype=dtype)

    assert nats == pytest.approx(other, rel=tolerance)
    assert (chunked - whole).norm() <= tolerance * whole.norm()


def test_rows_taken_apart_hold_every_label_once(make_job):
    job = make_job("a")
    part = next(iter(job.parts()))
    alone = one_document_a_row(part)
    pieces = sum(int(row.max()) + 1 for row in part["document_ids"])

    assert alone["input_ids"].shape == (pieces, int((alone["document_ids"] == 0).sum(1).max()))
    assert torch.equal(alone["labels"][alone["document_ids"] == 0], part["labels"][part["document_ids"] >= 0])
    assert torch.equal(alone["input_ids"][alone["document_ids"] == 0], part["input_ids"][part["document_ids"] >= 0])
    assert (alone["labels"][alone["document_ids"] < 0] == -100).all()


@pytest.mark.parametrize(("strength", "scale"), [(0.0, 1.0), (0.5, 0.625), (1.0, 0.25)])
def test_clipping_brings_a_norm_down_as_far_as_its_strength_says(make_job, strength, scale):
    job = make_job("a", methods={"clipping": {"norm": 0.5, "strength": strength}})
    job.parallel.buffer.fill_(1.0)
    job.methods.backward(norm=2.0)

    assert job.parallel.buffer.unique().tolist() == [scale]


def test_a_decay_of_half_strength_falls_half_of_the_way(make_job):
    full = make_job("full", steps=10, methods={"wsd": {"warmup": 0, "decay": 1}})
    half = make_job("half", steps=10, methods={"wsd": {"warmup": 0, "decay": 1, "strength": 0.5}})

    for step in range(10):
        assert 1 - half.methods.schedule(step) == pytest.approx((1 - full.methods.schedule(step)) / 2)


def test_a_new_method_is_one_file(make_job, tmp_path, monkeypatch):
    """It has settings that are checked, a place, events and a state that is kept."""
    (tmp_path / "brake.py").write_text(
        textwrap.dedent('''
        """Halves the learning rates after so many steps."""

        from pydantic import Field

        from tessera.train.method import Method, MethodSettings


        class BrakeSettings(MethodSettings):
            """Halves the learning rates."""

            strength: float = Field(0.0, ge=0, le=1)
            after: int = Field(2, ge=0)


        class Brake(Method[BrakeSettings]):
            settings_type = BrakeSettings
            place = 55

            def init(self):
                import torch

                self.braked = torch.zeros(())

            def schedule(self, step):
                return 0.5 if step >= self.settings.after else 1.0

            def end_of_batch(self):
                self.braked += 1
                return {"braked": float(self.braked)}

            def state(self):
                return {"braked": self.braked}
        ''')
    )
    before = TrainSettings().identity()
    monkeypatch.setattr(method.package, "__path__", [*method.package.__path__, str(tmp_path)])
    method.classes.cache_clear()
    try:
        section = method.settings_type()
        assert list(method.classes()) == [
            "packing", "chunked_loss", "mixture", "clipping", "wsd", "brake", "muon"
        ]  # fmt: skip
        assert section().identity() == before["methods"], "which it leaves as it is"
        with pytest.raises(ConfigError, match=r"unknown key brake.aftr; did you mean 'after'"):
            load(section, layers=[Layer("--set", {"brake": {"aftr": 1}})])
        given = section.model_validate({"brake": {"strength": 1, "after": 3}, "wsd": {"strength": 0}})
        job = make_job("a")
        job.methods = method.make(given, job=job)
        job.methods.init()
        train(job)
        rates = [line["learning_rate"] for line in metric_lines(job.folder)[1:]]
        assert rates == [0.012] * 3 + [0.006] * 3
        assert [line["braked"] for line in metric_lines(job.folder)[1:]] == [1, 2, 3, 4, 5, 6]
        assert job.tensors()["brake.braked"] == 6
    finally:
        method.classes.cache_clear()


@pytest.mark.distributed
def test_two_ranks_with_other_methods_are_gone_on_with_exactly(make_run):
    """Killed twice, once within a save; a mixture, so that every method that there is takes part."""
    changed = {"methods": {**CHANGED, "mixture": {"balance": 0.1}}, "model": MIXTURE, "deterministic": True}
    whole, killed = make_run("whole", **changed), make_run("killed", **changed)
    run_ranks(whole, ranks=2)
    for fail in ("checkpoint.before_record:kill:2", "train.after_step:kill:1"):
        run_ranks(killed, ranks=2, fail=fail)
        assert killed.read_result() is None
        make_run("killed", **changed)
    run_ranks(killed, ranks=2)

    assert killed.read_result().weights_sha256 == whole.read_result().weights_sha256
    assert metric_lines(killed) == metric_lines(whole)
