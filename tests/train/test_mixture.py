"""Mixtures of experts in training: balanced, recorded, resumed, the same for any share of the work, and exported."""

import pytest
import torch
from tests.train.conftest import metric_lines, run_ranks
from tests.train.test_methods import MIXTURE, gradients_of, weights_after

from tessera.failpoints import InjectedFault
from tessera.model.build import load
from tessera.model.generate import generate
from tessera.train.loop import add_gradients, train


def mixture_job(make_job, name="a", **changed):
    job = make_job(name, **{"model": MIXTURE, **changed})
    return job, next(method for method in job.methods if type(method).__name__ == "Mixture")


def test_a_run_trains_and_its_export_answers_as_it_did(make_job, set_home):
    job, _ = mixture_job(make_job, steps=20)
    train(job)
    lines = metric_lines(job.folder)
    checkpoint = job.folder.root / job.folder.read_result().checkpoint

    assert lines[-1]["heldout_bits_per_byte"] < 0.95 * lines[0]["heldout_bits_per_byte"]
    assert {"expert_load_most", "expert_load_least"} <= lines[5].keys()
    loads = [lines[20][f"expert_load/layer_{layer}/{expert}"] for layer in range(2) for expert in range(8)]
    assert sum(loads) == pytest.approx(16)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ours, prompt = load(checkpoint), [5, 9, 17, 3]
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(torch.tensor([prompt])).logits, ours(torch.tensor([prompt])).logits, rtol=1e-5, atol=1e-5
        )
        said = list(generate(ours, prompt=prompt, max_new_tokens=12))
        expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, min_new_tokens=12, do_sample=False)
    assert said == expected[0, len(prompt) :].tolist()


def test_the_losses_of_the_routers_are_what_their_papers_say(make_job):
    """From each router's logits by hand: shares of the step before times probabilities, and squared log-sums."""
    job, mixture = mixture_job(make_job, methods={"mixture": {"balance": 0.3, "router_z": 0.2}})
    mixture.shares.copy_(torch.rand(2, 8).softmax(1))
    part = next(iter(job.parts()))
    heard: list[torch.Tensor] = []
    for layer in job.model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda module, given, output: heard.append(output[0].detach()))
    with job.methods.forward():
        nats = job.nats(part)
        loss = job.methods.loss(nats, part)

    real = (part["document_ids"] >= 0).flatten()
    added = 0.0
    for logits, shares in zip(heard, mixture.shares, strict=True):
        for token in logits[real]:
            chance = torch.exp(token) / torch.exp(token).sum()
            added += 0.3 * 8 * float((chance * shares).sum()) + 0.2 * float(torch.log(torch.exp(token).sum())) ** 2
    assert (loss - nats).item() == pytest.approx(added / 2, rel=1e-4)
    assert mixture.counts.sum(1).tolist() == [2 * real.sum().item()] * 2


def test_a_mixture_without_strength_has_the_plain_loss(make_job):
    job, _ = mixture_job(make_job, "with")
    bare = make_job("bare", model=MIXTURE, methods={"mixture": {"strength": 0}})
    part = next(iter(job.parts()))
    with job.methods.forward():
        assert job.methods.loss(job.nats(part), part) > bare.nats(part)
    assert bare.methods.loss(bare.nats(part), part) == bare.nats(part)
    assert not [name for name in bare.tensors() if name.startswith("mixture")]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_gradients_do_not_depend_on_micro_batches_and_packing(make_job, dtype, tolerance):
    def gradients(name, **changed):
        job, _ = mixture_job(make_job, name, **changed)
        if dtype == torch.float64:  # torch has no grouped product of it
            job.model.config._experts_implementation = "eager"
        return gradients_of(job, dtype=dtype)

    whole, nats = gradients("whole")
    for name, changed in {"parts": {"micro_batch": 3}, "alone": {"methods": {"packing": {"strength": 0}}}}.items():
        other, other_nats = gradients(name, **changed)
        assert nats == pytest.approx(other_nats, rel=tolerance)
        assert (whole - other).norm() <= tolerance * whole.norm()


def test_the_balance_loss_spreads_the_tokens(make_job):
    most = {}
    for name, balance in (("with", 0.3), ("without", 0.0)):
        settings = {"balance": balance, "router_z": 0.0}
        job, mixture = mixture_job(make_job, name, steps=40, methods={"mixture": settings})
        with torch.no_grad():  # one expert begins as everybody's favourite
            for layer in job.model.model.layers:
                layer.mlp.gate.weight[0] = 0.5 * layer.mlp.gate.weight.norm()
        train(job)
        most[name] = float(mixture.shares.std(1).mean())

    assert most["with"] < 0.6 * most["without"]


def test_idle_experts_are_told_of_once(make_job):
    job, mixture = mixture_job(make_job, methods={"mixture": {"alarm_steps": 3}})
    for _ in range(6):
        mixture.batch()
        mixture.counts[:] = torch.tensor([5.0, 5, 5, 5, 5, 5, 5, 0])
        mixture.counts[1, 7] = 5
        job.methods.end_of_batch()

    told = [line for line in job.folder.notices.read_text().splitlines() if "hardly a token" in line]
    assert len(told) == 1
    assert "layer 0: 1 of 8 experts have had hardly a token for 3 steps" in told[0]


def test_a_mixture_is_gone_on_with_exactly(make_job, monkeypatch):
    whole = weights_after(make_job, "whole", model=MIXTURE)
    monkeypatch.setenv("TESSERA_FAIL", "train.after_step:raise:3")
    with pytest.raises(InjectedFault):
        train(make_job("stopped", model=MIXTURE))
    monkeypatch.delenv("TESSERA_FAIL")

    assert weights_after(make_job, "stopped", model=MIXTURE) == whole


def test_a_batch_that_begins_again_counts_its_tokens_once(make_job):
    job, mixture = mixture_job(make_job)
    add_gradients(job)
    once = mixture.counts.clone()
    add_gradients(job)

    assert torch.equal(mixture.counts, once)


@pytest.mark.distributed
def test_two_ranks_do_what_one_does(make_run, make_job):
    both = make_run("both", model=MIXTURE)
    run_ranks(both, ranks=2)
    alone = make_job("alone", model=MIXTURE)
    train(alone)

    assert both.read_result().ranks == 2
    for one, two in zip(metric_lines(alone.folder), metric_lines(both), strict=True):
        assert one == pytest.approx(two, abs=2e-3, rel=2e-3)
