import json

import pytest

from tessera.errors import ConfigError, Conflict, ModelError, TrainingFailed
from tessera.home import Home
from tessera.lineage import ShardRecord, TableVersion, TokenizerRef, TrainRecord
from tessera.train import failure
from tessera.train import run as runs
from tessera.train.loop import train
from tessera.train.metrics import Tail, Writer, cut_back
from tessera.train.run import RunFolder, RunSpec
from tessera.train.settings import TrainSettings


def shard_record(*, version=0, fingerprint="a" * 64):
    manifest = TableVersion(name="small/manifest", path="shards/small/manifest", version=version)
    return ShardRecord(
        fingerprint=fingerprint, name="small", manifest=manifest, spans=manifest, seq_len=32, tokens=1, shards=1,
        inputs=(TableVersion(name="documents", path="tables/documents", version=0),), splits={}, fill=1.0,
        tokenizer=TokenizerRef(path="tokenizers/small", sha256="b" * 64, vocab_size=300, end_id=0),
    )  # fmt: skip


def fingerprint(*, block_shards=2, version=0, **changed):
    settings = TrainSettings.model_validate(changed)
    return runs.fingerprint(settings, shards=shard_record(version=version), block_shards=block_shards)


def test_the_fingerprint_covers_what_decides_the_weights_and_no_more(tmp_path):
    plain = fingerprint()

    assert fingerprint(ranks=4, threads=2, micro_batch=1, checkpoint={"every_steps": 3}) == plain
    assert len({plain, fingerprint(seed=3), fingerprint(steps=7), fingerprint(version=1), fingerprint(block_shards=3),
                fingerprint(model={"layers": 1})}) == 6  # fmt: skip
    with pytest.raises(ModelError, match="nothing is downloaded"):
        fingerprint(model={"path": str(tmp_path / "absent")})


def test_a_pretrained_folder_enters_by_its_contents_not_its_place(tmp_path):
    for name, text in (("a", "{}"), ("b", "{}"), ("c", '{"x": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    a, b, c = (fingerprint(model={"path": str(tmp_path / name)}) for name in "abc")

    assert a == b != c


def choose(home, *, fresh=False, made=True):
    folder = runs.choose_folder(home, fingerprint="0123456789abcdef", set_name="docs", fresh=fresh)
    if made:
        folder.root.mkdir(parents=True, exist_ok=True)
    return folder.root.name


def test_a_run_is_gone_on_with_unless_fresh_asks_for_a_new_one(home):
    assert choose(home, made=False) == "docs-0123456789ab"
    assert choose(home, fresh=True) == "docs-0123456789ab"
    assert choose(home) == "docs-0123456789ab"
    assert choose(home, fresh=True) == "docs-0123456789ab-2"
    assert choose(home) == "docs-0123456789ab-2"


def test_two_launchers_of_one_run_are_a_conflict(tmp_path):
    folder = RunFolder(tmp_path)
    with (
        runs.launcher_lock(folder),
        pytest.raises(Conflict, match="trained by another process"),
        runs.launcher_lock(folder),
    ):
        pass
    with runs.launcher_lock(folder):  # free again
        pass


def test_a_recorded_run_holds_while_its_files_have_their_sizes(make_job):
    job = make_job("a")
    train(job)
    folder, home = job.folder, job.folder.home
    result = folder.read_result()
    shards = shard_record()
    record = TrainRecord(
        fingerprint="f", run=home.relative(folder.root), run_id="", shard_set=shards.manifest,
        tokenizer=shards.tokenizer, steps=6, train_tokens=result.train_tokens, ranks=1, parameters=1,
        bits_per_byte_before=1.0, checkpoint=home.relative(folder.root / result.checkpoint),
        weights_sha256=result.weights_sha256,
    )  # fmt: skip

    assert runs.verify(record, home=home)
    assert not runs.verify(record.model_copy(update={"weights_sha256": "other"}), home=home)
    assert not runs.verify(record, home=Home(home.root / "elsewhere"))
    weights = folder.root / result.checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert not runs.verify(record, home=home)


def leave(folder, rank, kind, message, *, at=1.0, exit_status=1, restart=0, verdict=False):
    folder.errors.mkdir(exist_ok=True)
    entry = {"rank": rank, "attempt": 1, "time": at, "type": kind, "message": message,
             "exit_status": exit_status, "verdict": verdict, "restart": restart,
             "trace": ["train/loop.py:12"]}  # fmt: skip
    (folder.errors / f"rank-{rank}.json").write_text(json.dumps(entry))


PEER = "[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3"


SUMMARY = """
Failures:
[1]:
  time      : 2026-11-23_23:52:32
  host      : localhost
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 1229)
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 1230)
  error_file: <N/A>
"""


def test_a_failure_names_the_rank_that_failed_and_why(tmp_path):
    folder = RunFolder(tmp_path)
    assert "no rank left a record" in failure.find(folder).said

    leave(folder, 0, "RuntimeError", PEER)
    assert failure.find(folder).said == f"the ranks lost each other; rank 0: {PEER}"
    spec = RunSpec(run="a", fingerprint="f", settings=TrainSettings(ranks=2), tokenizer="t", block_shards=1)
    folder.spec.write_text(runs.to_json(spec.model_dump(mode="json")))
    assert failure.find(folder).said.startswith("rank 1 ended and left no word")

    folder.log.write_text("E1125 failed (exitcode: -9) local_rank: 0 (pid: 12) of binary: python")
    assert "a rank was killed by signal 9" in failure.find(folder).said
    folder.log.write_text(SUMMARY + "\n" + SUMMARY.replace("-9", "1"))  # two machines report
    assert "rank 1 was killed by signal 9" in failure.find(folder).said

    leave(folder, 1, "TrainingFailed", "step 5: the loss is nan", at=2.0, verdict=True)
    found = failure.find(folder)
    assert found.said == "rank 1 failed: TrainingFailed: step 5: the loss is nan"
    assert isinstance(found.error(folder), TrainingFailed)
    assert "run the command again" in str(found.error(folder))

    leave(folder, 1, "KeyError", "", at=2.0)
    assert failure.find(folder).said == "rank 1 failed: KeyError, in train/loop.py:12"


def test_only_the_words_of_the_start_that_is_asked_for_count(tmp_path):
    folder = RunFolder(tmp_path)
    leave(folder, 0, "MemoryError", "out of memory", restart=0)
    leave(folder, 1, "KeyError", "", restart=1)
    folder.starts.write_text('{"attempt": 1, "restart": 0}\n{"attempt": 1, "restart": 1}\n')

    assert "rank 1 failed: KeyError" in failure.find(folder).said
    assert "rank 0 failed: MemoryError" in failure.find(folder, start=(1, 0)).said


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        (
            "python: Error while finding module specification (ModuleNotFoundError: No module named 'tessera')",
            "install",
        ),
        ("FileNotFoundError: [Errno 2] No such file or directory: '/mnt/home/runs/a/run.json'", "same path"),
        ("RuntimeError: This cluster has TLS encryption enabled", "ignoreSsl"),
    ],
)
def test_a_cluster_that_is_not_ready_is_said_and_not_tried_again(tmp_path, said, advice):
    folder = RunFolder(tmp_path)
    folder.log.write_text(f"{said}\n{SUMMARY.replace('-9', '1')}")
    found = failure.find(folder)

    assert advice in found.said
    assert (found.verdict, found.exit_status) == (True, 2)


def test_what_the_user_can_mend_is_told_as_such(tmp_path):
    folder = RunFolder(tmp_path)
    leave(folder, 0, "ModelError", "the vocabulary differs", exit_status=ConfigError.exit_status)
    error = failure.find(folder).error(folder)

    assert (error.exit_status, str(error), failure.find(folder).verdict) == (2, "the vocabulary differs", True)


def test_a_tail_gives_each_line_once_also_when_the_file_is_cut_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert list(tail.read()) == []

    writer = Writer(path)
    for step in range(4):
        writer.write({"step": step, "loss": float("nan") if step == 2 else 1.0})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # torn by a kill
    assert list(tail.read()) == [
        {"step": 0, "loss": 1.0},
        {"step": 1, "loss": 1.0},
        {"step": 2},
        {"step": 3, "loss": 1.0},
    ]
    assert list(tail.read()) == []

    cut_back(path, step=1)
    Writer(path).write({"step": 2, "loss": 3.0})
    assert [line["step"] for line in tail.read()] == [0, 1, 2]
    cut_back(path, step=-1)
    assert path.read_text() == ""
