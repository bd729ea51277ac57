"""`tessera train --resume`: what it asks for in place of the user."""

import json
from types import SimpleNamespace

import pytest

from tessera.config import load, parse_set
from tessera.errors import ConfigError
from tessera.settings import Settings
from tessera.train import resume
from tessera.train.loop import train


def settings(home, run, *changes):
    asked = resume.assignments(home, run=run, changes=changes)
    base = parse_set(["prepare.sources=[{path: t}]", "train.steps=320", "train.methods.muon.lr=0.5"])
    return load(Settings, layers=[*base, *parse_set(asked)])


@pytest.fixture
def finished(make_job, set_home, monkeypatch):
    """A run on version 0 of its set, which is the newest."""
    newest = SimpleNamespace(manifest=SimpleNamespace(version=0))
    monkeypatch.setattr(resume, "read_record", lambda home, name: newest)
    job = make_job("a", steps=4, methods={"muon": {"lr": 0.02}})
    train(job)
    return set_home, job.folder


def test_a_finished_run_goes_on_with_its_own_settings_and_what_is_changed(finished):
    home, folder = finished
    found = settings(home, folder.root.name, "train.steps=9", "train.methods.wsd.decay=0.1")

    assert found.train.from_ == folder.root.name
    assert (found.train.steps, found.train.methods.wsd.decay) == (9, 0.1)
    assert (found.train.methods.muon.lr, found.train.batch_size, found.shard.name) == (0.02, 8, "small")


def test_an_unfinished_run_of_which_nothing_is_changed_is_simply_gone_on_with(finished):
    home, folder = finished
    folder.record.unlink()

    assert settings(home, folder.root.name).train == folder.read_spec().settings
    assert settings(home, folder.root.name).shard.block_shards == 2
    assert settings(home, folder.root.name, "train.ranks=1", "train.threads=2").train.from_ is None
    assert settings(home, folder.root.name, "train.steps=9").train.from_ == folder.root.name
    assert settings(home, f"{folder.root.name}@2").train.from_ == f"{folder.root.name}@2"


@pytest.mark.parametrize(
    ("run", "changes", "said"),
    [("nothing", (), "no such run"), ("../x", (), "no such run"), (None, ("train.stepz=3",), "stepz")],
    ids=["no run", "a path", "no key"],
)
def test_what_is_not_there_is_said(finished, run, changes, said):
    home, folder = finished
    with pytest.raises(ConfigError, match=said):
        resume.assignments(home, run=run or folder.root.name, changes=changes)


def test_settings_of_a_run_survive_the_way_through_its_file(finished):
    _, folder = finished
    kept = json.loads(folder.spec.read_text())["settings"]

    assert kept["from"] is None
    assert folder.read_spec().settings.model_dump(mode="json") == kept


def test_an_unfinished_run_whose_set_has_grown_does_not_begin_anew_unasked(finished, monkeypatch):
    home, folder = finished
    folder.record.unlink()
    grown = SimpleNamespace(manifest=SimpleNamespace(version=3))
    monkeypatch.setattr(resume, "read_record", lambda home, name: grown)

    with pytest.raises(ConfigError, match=r"trained on small@0, and the set is at version 3 now"):
        settings(home, folder.root.name)
    assert settings(home, folder.root.name, "train.only_new=true").train.from_ == folder.root.name


def test_a_run_of_only_what_was_new_goes_on_in_its_own_order(finished):
    home, folder = finished
    spec = json.loads(folder.spec.read_text())
    spec["settings"] |= {"only_new": True, "from": "trunk"}
    folder.spec.write_text(json.dumps(spec))
    found = settings(home, folder.root.name, "train.steps=9")

    assert (found.train.from_, found.train.only_new) == (folder.root.name, False)
