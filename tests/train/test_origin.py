"""Runs that start from another: they go on in order, branch, take only what is new, and know what they have seen."""

import dataclasses
import json
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.train.conftest import metric_lines

from tessera.errors import ConfigError, CorruptCheckpoint, ModelError, ShardSetError
from tessera.lineage import ShardRecord, TableVersion, TokenizerRef
from tessera.shard.run_manifest import SetInfo, read_run_manifest, write_run_manifest
from tessera.train import job as jobs
from tessera.train import ledger, origin
from tessera.train import run as runs
from tessera.train.garbage import garbage
from tessera.train.loop import train
from tessera.train.opening import open_job
from tessera.train.ranks import Ranks
from tessera.train.run import RunFolder, to_json
from tessera.train.settings import TrainSettings

STEADY = {"methods": {"wsd": {"warmup": 0, "decay": 0}}}
FALLING = {"methods": {"wsd": {"warmup": 0, "decay": 0.5}}}


def set_record(home, *, version=0, name="small") -> ShardRecord:
    info = SetInfo.from_metadata(read_run_manifest(home.root / "shards.arrow").schema.metadata)
    pinned = TableVersion(name=f"{name}/manifest", path="shards/small/manifest", version=version)
    tokenizer = TokenizerRef(
        path="tokenizers/small", sha256=info.tokenizer, vocab_size=info.vocab_size, end_id=info.end_id
    )
    return ShardRecord(
        fingerprint="a" * 64, name=name, manifest=pinned, spans=pinned, seq_len=info.seq_len, tokens=1, shards=1,
        splits={}, fill=1.0, inputs=(), tokenizer=tokenizer,
    )  # fmt: skip


def resolved(home, given, *, version=0, fetch=None, **changed):
    settings = TrainSettings.model_validate({"steps": 12, "batch_size": 8, "from": given, **changed})
    return origin.resolve(settings, shards=set_record(home, version=version), home=home, fetch=fetch or Path)


@pytest.fixture
def begin(make_run, make_job, set_home, monkeypatch):
    """Opens a job that starts from another run, as the launcher would have it."""

    def begin(name, given, *, version=0, **changed):
        found = resolved(set_home, given, version=version, **{**changed, "ranks": 1})
        original = runs.RunSpec

        def spec(**values):
            return original(**{**values, "origin": found})

        monkeypatch.setattr("tests.train.conftest.RunSpec", spec)
        job = make_job(name, **{**changed, "from": given})
        monkeypatch.setattr("tests.train.conftest.RunSpec", original)
        return job

    return begin


@pytest.fixture
def drawn(monkeypatch):
    numbers: list[int] = []
    original = jobs.batch_at
    monkeypatch.setattr(jobs, "batch_at", lambda *a, step, **k: numbers.append(step) or original(*a, step=step, **k))
    return numbers


def test_a_run_that_goes_on_ends_as_one_that_never_stopped(make_job, begin, drawn):
    whole = make_job("whole", steps=12, **STEADY)
    train(whole)
    trunk = make_job("trunk", steps=6, **STEADY)
    train(trunk)
    drawn.clear()
    further = begin("further", trunk.folder.root.name, steps=12, **STEADY)
    train(further)

    assert drawn == list(range(6, 12))
    assert further.folder.read_result().weights_sha256 == whole.folder.read_result().weights_sha256
    lines, all_lines = metric_lines(further.folder), metric_lines(whole.folder)
    assert [line["step"] for line in lines] == list(range(6, 13))
    assert [line["loss"] for line in lines[1:]] == [line["loss"] for line in all_lines[7:]]
    assert [line["tokens"] for line in lines] == [line["tokens"] for line in all_lines[6:]]
    assert f"goes on from {trunk.folder.root.name} after step 6" in further.folder.notices.read_text()


def test_two_decays_branch_from_one_trunk_and_a_killed_one_goes_on(make_job, begin, monkeypatch):
    from tessera.failpoints import InjectedFault

    trunk = make_job("trunk", steps=6, **STEADY)
    train(trunk)
    before = trunk.folder.read_result()
    name = trunk.folder.root.name
    short, long = begin("short", name, steps=10, **FALLING), begin("long", name, steps=14, **FALLING)
    train(short)
    train(long)
    rates = [[line["learning_rate"] for line in metric_lines(job.folder)[1:]] for job in (short, long)]

    assert rates[0] == pytest.approx([0.012 * share for share in (0.8, 0.6, 0.4, 0.2)])
    assert rates[1][:2] == [0.012, 0.012], "its decay begins at half of 14 steps"
    assert trunk.folder.read_result() == before
    monkeypatch.setenv("TESSERA_FAIL", "train.after_step:raise:3")
    with pytest.raises(InjectedFault):
        train(begin("killed", name, steps=14, **FALLING))
    monkeypatch.delenv("TESSERA_FAIL")
    killed = begin("killed", name, steps=14, **FALLING)
    assert killed.progress.next_step == 8
    train(killed)
    assert killed.folder.read_result().weights_sha256 == long.folder.read_result().weights_sha256


def test_a_branch_from_an_earlier_step_and_the_ledger_of_all(make_job, begin):
    trunk = make_job("trunk", steps=6, **STEADY)
    train(trunk)
    branch = begin("branch", f"{trunk.folder.root.name}@4", steps=9, **STEADY)
    train(branch)
    leaf = begin("leaf", branch.folder.root.name, steps=11, **STEADY)
    train(leaf)
    found = ledger.segments(leaf.folder, steps=11)

    assert [(one.first, one.last, one.first_step) for one in found] == [(0, 4, 1), (4, 9, 5), (9, 11, 10)]
    assert [one.steps_of(np.array([one.first])).tolist() for one in found] == [[1], [5], [10]]


@pytest.fixture
def grown(set_home, make_run, monkeypatch):
    """From now on runs are over version 1 of the set, which has one shard more of a generation of its own."""
    old = read_run_manifest(set_home.root / "shards.arrow")
    rows = old.to_pylist()
    train_rows = [row for row in rows if row["split"] == "train"]
    added = [{**row, "generation": 1} for row in train_rows[:2]]
    info = dataclasses.replace(SetInfo.from_metadata(old.schema.metadata), version=1)
    table = pa.Table.from_pylist(
        [*(row for row in rows if row["split"] != "train"), *train_rows, *added], schema=old.schema
    ).replace_schema_metadata(info.to_metadata())

    def grow(folder: RunFolder) -> None:
        spec = folder.read_spec()
        write_run_manifest(origin.only_new(table, origin=spec.origin, shards=set_record(set_home)), folder.manifest)

    return grow


def test_a_trunk_goes_on_with_only_what_is_new(make_job, begin, grown, set_home, drawn, monkeypatch):
    trunk = make_job("trunk", steps=6, **STEADY)
    train(trunk)
    name = trunk.folder.root.name
    changed = {"steps": 9, "only_new": True, "batch_size": 8, **STEADY}
    original = runs.RunFolder.read_spec
    grew: list[str] = []

    def read_spec(folder):  # the launcher writes the manifest before any rank reads it
        spec = original(folder)
        if spec.origin is not None and folder.root.name not in grew:
            grew.append(folder.root.name)
            grown(folder)
        return spec

    monkeypatch.setattr(runs.RunFolder, "read_spec", read_spec)
    drawn.clear()
    further = begin("further", name, version=1, **changed)
    train(further)

    assert drawn == [0, 1, 2], "an order of its own, from its beginning"
    assert further.spec.origin.seen == (0,)
    assert trunk.progress.recent != further.progress.recent[:6], "losses of other text say nothing"
    assert [line["step"] for line in metric_lines(further.folder)] == [6, 7, 8, 9]
    segments = ledger.segments(further.folder, steps=9)
    assert [(one.set_version, one.first, one.last, one.first_step) for one in segments] == [(0, 0, 6, 1), (1, 0, 3, 7)]
    assert len(segments[1].files) == 2
    taken = Counter()
    for one in segments:
        index = np.arange(one.first * one.batch_size, one.last * one.batch_size)
        taken.update(zip(*(part.tolist() for part in one.order.locate(index)), strict=True))
    assert sum(taken.values()) == 9 * 8


@pytest.mark.parametrize(
    ("given", "changed", "error", "said"),
    [
        ("{run}", {"steps": 6}, ConfigError, "has done 6, which count; set train.steps above 6"),
        ("{run}@5", {}, ConfigError, "the run has checkpoints of these steps: 4, 6; give RUN or RUN@STEP"),
        ("{run}@x", {}, ConfigError, "checkpoints of these steps: 4, 6"),
        ("{run}", {"version": 1}, ConfigError, r"was trained on small@0, the set is small@1 .* train.only_new=true"),
        ("nothing", {}, ConfigError, r"train.from nothing is no run of this home \(there are: .*\), and no folder"),
        (None, {"only_new": True}, ConfigError, "train.only_new is true without train.from"),
    ],
)  # fmt: skip
def test_what_cannot_be_gone_on_with_is_said(make_job, set_home, given, changed, error, said):
    job = make_job("trunk", steps=6)
    train(job)
    with pytest.raises(error, match=said):
        resolved(set_home, given and given.format(run=job.folder.root.name), **changed)


def test_a_branch_with_a_checkpoint_of_its_own_needs_its_trunk_no_more(make_job, begin, monkeypatch):
    from tessera.failpoints import InjectedFault

    trunk = make_job("trunk", steps=6, **STEADY)
    train(trunk)
    monkeypatch.setenv("TESSERA_FAIL", "train.after_step:raise:3")
    with pytest.raises(InjectedFault):
        train(begin("branch", trunk.folder.root.name, steps=14, **STEADY))
    monkeypatch.delenv("TESSERA_FAIL")
    branch = begin("branch", trunk.folder.root.name, steps=14, **STEADY)
    point = branch.folder.root.parents[1] / branch.spec.origin.folder
    point.rename(point.with_name("away"))

    train(begin_again(branch))
    assert branch.folder.read_result().steps == 14


def begin_again(job):
    return open_job(job.folder, attempt=job.folder.read_attempt(), ranks=Ranks())


def test_a_trunk_that_others_branched_from_is_no_garbage(make_job, begin, set_home):
    trunk = make_job("trunk", steps=6, **STEADY)
    train(trunk)
    train(begin("branch", f"{trunk.folder.root.name}@4", steps=8, **STEADY))
    trunk.folder.record.unlink()
    torn = RunFolder(set_home.runs / "torn")
    torn.checkpoints.mkdir(parents=True)
    torn.spec.write_text("{")
    later = time.time() + 400 * 86_400
    try:
        named = {found.path.name for found in garbage(set_home, before=later)}
    finally:
        shutil.rmtree(torn.root)

    assert trunk.folder.root.name not in named
    assert "torn" in named


def test_a_checkpoint_that_is_being_written_says_nothing_of_skipped_batches(make_job):
    job = make_job("a", steps=6)
    train(job)
    job.folder.record.unlink()
    torn = job.folder.checkpoints / "step-00000099"
    torn.mkdir()
    (torn / "state.json").write_text('{"progress": {"sk')

    assert job.folder.read_skipped() == ()


def test_compacted_sets_and_other_sets_are_not_taken_for_new(make_job, set_home):
    job = make_job("trunk", steps=6)
    train(job)
    found = resolved(set_home, job.folder.root.name, only_new=True)
    table = read_run_manifest(set_home.root / "shards.arrow")
    rows = [{**row, "generation": 5} for row in table.to_pylist()]
    compacted = set_record(set_home).model_copy(update={"compactions": (5,)})
    with pytest.raises(ConfigError, match="was compacted at documents version 5"):
        origin.only_new(pa.Table.from_pylist(rows, schema=table.schema), origin=found, shards=compacted)
    settings = TrainSettings.model_validate({"steps": 12, "from": job.folder.root.name, "only_new": True})
    with pytest.raises(ConfigError, match="was trained on set small, this is another"):
        origin.resolve(settings, shards=set_record(set_home, name="another"), home=set_home, fetch=Path)


def test_another_order_is_refused_by_the_ranks(make_job, begin):
    trunk = make_job("trunk", steps=6)
    train(trunk)
    with pytest.raises(ShardSetError, match="has seed 17, this run has 18"):
        begin("further", trunk.folder.root.name, steps=12, seed=18)
    with pytest.raises(CorruptCheckpoint, match="belongs to another model, or to other methods"):
        begin("other", trunk.folder.root.name, steps=12, methods={"muon": {"strength": 0}})


def test_weights_alone_are_taken_from_a_folder_and_a_registered_model(make_job, begin, set_home, tmp_path):
    trunk = make_job("trunk", steps=6)
    train(trunk)
    folder = trunk.folder.root / trunk.folder.read_result().checkpoint
    job = begin("tuned", str(folder), steps=3)
    train(job)
    lines = metric_lines(job.folder)

    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[0]["heldout_loss"] == metric_lines(trunk.folder)[-1]["heldout_loss"]
    named = resolved(set_home, "models:/docs@champion", fetch={"models:/docs@champion": folder}.__getitem__)
    assert named.identity() == resolved(set_home, str(folder)).identity()
    assert named.point is None
    made_by = RunFolder(set_home.runs / named.before.run).read_result()  # another test's run may have ended alike
    assert made_by.weights_sha256 == trunk.folder.read_result().weights_sha256
    segments = ledger.segments(job.folder, steps=3)
    assert sum(one.last - one.first for one in segments) == 6 + 3, "of both runs"
    assert (segments[-1].first, segments[-1].last, segments[-1].first_step) == (0, 3, 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises((ModelError, ConfigError)):
        begin("bad", str(tmp_path / "empty"), steps=3)


def test_the_fingerprint_covers_what_is_started_from_and_no_name(make_job, set_home):
    trunk = make_job("trunk", steps=6)
    train(trunk)
    name, record = trunk.folder.root.name, set_record(set_home)
    settings = TrainSettings.model_validate({"steps": 12, "from": name})

    def of(given, settings=settings):
        found = resolved(set_home, given) if given else None
        return runs.fingerprint(settings, shards=record, block_shards=2, origin=found)

    assert len({of(None), of(name), of(f"{name}@4")}) == 3
    assert of(name) == of(f"{name}@6")
    assert json.loads(to_json(settings.model_dump(mode="json")))["from"] == name
    assert TrainSettings.model_validate(settings.model_dump(mode="json")) == settings
