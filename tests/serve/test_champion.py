"""Who becomes champion: by the gate, against the champion of now, or forced with a reason. In a real MLflow store."""

import subprocess
import sys

import pytest

from tessera import audit, registry
from tessera.errors import GateRefused, ModelError
from tessera.serve import champion

from .test_register import do_register


def found(store, name):
    return champion.find(name, fetch=lambda uri: store.home.root / uri, tracking_uri=store.uri)


def by_hand(store, model, **given):
    given = {"force": False, "reason": "", **given}
    return champion.promote_by_hand(store.home, model=model, tracking_uri=store.uri, **given)


def promotions(store, name):
    return [entry for entry in audit.entries(store.home) if entry["stage"] == "promote" and name in entry["output"]]


def test_there_is_no_champion_before_the_first(store):
    assert found(store, "nobody.yet") is None
    do_register(store, "failed.only", passed=False)
    assert found(store, "failed.only") is None


def test_the_champion_is_found_without_mlflow_and_by_mlflow_alike(store):
    do_register(store, "found", passed=True)

    rival = found(store, "found")

    assert (rival.name, rival.weights_sha256, rival.run) == (
        "found version 1", store.train.weights_sha256, store.train.run
    )  # fmt: skip
    assert rival.checkpoint() == store.home.root / "models:/found/1"
    assert champion._in_registry("found", tracking_uri=store.uri, registry_uri=None) == (
        1,
        rival.weights_sha256,
        rival.run,
    )
    code = (
        "import sys; from pathlib import Path; from tessera.serve import champion\n"
        "assert champion.find('found', fetch=Path, tracking_uri=sys.argv[1]) is not None\n"
        "assert not {'mlflow', 'torch', 'pyspark', 'transformers', 'pandas'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, store.uri], check=True)


def test_every_promotion_is_in_the_audit_table_once(store):
    for _ in range(2):
        do_register(store, "audited", passed=True, reasons=("bits per byte 2.5 is at most 3, the limit",))

    (entry,) = promotions(store, "audited")
    assert entry["output"] == "audited@champion@1"
    assert entry["purpose"] == "gate passed: bits per byte 2.5 is at most 3, the limit"
    assert audit.verify(store.home, heads=[]).problems == ()


def test_a_version_that_met_another_champion_is_not_promoted(store):
    do_register(store, "raced", passed=True, fingerprint="first")
    with pytest.raises(GateRefused, match="against weights ffffffffffff, and the champion is raced version 1 now"):
        champion.promote(
            store.home,
            registry.get_version(store.uri, model="models:/raced/1").__class__(
                name="raced", version=2, run_id="", source="", tags={"tessera.weights_sha256": "e" * 64}, aliases=()
            ),
            evaluate=store.evaluate.model_copy(update={"passed": True, "met": "f" * 64}),
            tracking_uri=store.uri,
        )
    assert registry.get_version(store.uri, model="models:/raced@champion").version == 1


def test_nobody_is_promoted_by_hand_past_the_gate_but_with_force_and_a_reason(store):
    do_register(store, "forced", passed=True, fingerprint="good")
    do_register(store, "forced", passed=False, fingerprint="bad", reasons=("bits per byte 2.5 is not at most 1",))

    with pytest.raises(GateRefused, match="did not pass its gate: bits per byte"):
        by_hand(store, "models:/forced/2")
    with pytest.raises(GateRefused, match="wants a reason"):
        by_hand(store, "models:/forced/2", force=True, reason="  ")
    assert registry.get_version(store.uri, model="models:/forced@champion").version == 1

    by_hand(store, "models:/forced/2", force=True, reason="the limit was wrong")

    version = registry.get_version(store.uri, model="models:/forced@champion")
    assert (version.version, version.tags["tessera.forced"]) == (2, "the limit was wrong")
    assert promotions(store, "forced")[-1]["purpose"] == "forced: the limit was wrong"
    by_hand(store, "models:/forced/1")  # back to one that passed
    assert registry.get_version(store.uri, model="models:/forced@champion").version == 1
    with pytest.raises(ModelError, match="forced has versions 1 to 2"):
        by_hand(store, "models:/forced/9")


def test_a_version_that_met_a_champion_is_promoted_by_hand_only_against_that_one(store):
    do_register(store, "met", passed=True, fingerprint="one", met="")
    do_register(store, "met", passed=False, fingerprint="two", met=store.train.weights_sha256)
    assert registry.get_version(store.uri, model="models:/met/1").tags["tessera.gate_champion"] == "none"

    by_hand(store, "models:/met/2", force=True, reason="to look")
    by_hand(store, "models:/met/1")  # the same weights: it met itself

    assert registry.get_version(store.uri, model="models:/met@champion").version == 1
