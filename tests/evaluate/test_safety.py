"""Canaries, extraction and emission, against models that remember and models that do not."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from deltalake import DeltaTable, write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from tessera.evaluate import canaries, emission, exposure, extraction, latency, safety
from tessera.evaluate.likelihood import Likelihood
from tessera.evaluate.settings import CanarySettings, SafetySettings
from tessera.evaluate.subject import Subject
from tessera.home import Home
from tessera.lineage import TableVersion
from tessera.model.loss import causal_nats
from tessera.prepare.duplicates.shingles import shingles
from tessera.prepare.private import detect

from .subjects import TEXTS, make_subject

SETTINGS = CanarySettings(per_level=5, candidates=50)
DOCUMENTS = TableVersion(name="documents", path="tables/documents", version=0)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_subject(tmp_path_factory.mktemp("subject"), scale=1.0)


def documents(home: Home, texts: dict[str, list[str]]) -> None:
    rows = [{"doc_id": f"{split}{i}", "text": text, "split": split} for split, some in texts.items()
            for i, text in enumerate(some)]  # fmt: skip
    write_deltalake(home.documents, pa.Table.from_pylist(rows))


def learn(subject: Subject, text: str, *, steps: int = 60) -> Subject:
    """The model after many steps on one text."""
    ids = [subject.tokenizer.end_id, *subject.tokenizer.encode_batch([text])[0]]
    length = len(ids) - 1
    batch = {
        "input_ids": torch.tensor([ids[:-1]]), "labels": torch.tensor([ids[1:]]),
        "position_ids": torch.arange(length)[None], "document_ids": torch.zeros(1, length, dtype=torch.int64),
    }  # fmt: skip
    optimizer = torch.optim.AdamW(subject.model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (causal_nats(subject.model, batch) / len(ids)).backward()
        optimizer.step()
    return subject


def test_canaries_are_a_function_of_the_settings() -> None:
    made = canaries.make(SETTINGS)
    assert made == canaries.make(SETTINGS)
    assert made != canaries.make(SETTINGS.model_copy(update={"seed": 18}))
    assert [canary.level for canary in made] == [0] * 5 + [1] * 5 + [4] * 5 + [16] * 5
    assert len({canary.place for canary in made}) == len({canary.secret for canary in made}) == 20


def test_the_table_holds_each_copy_once_and_never_the_others(tmp_path) -> None:
    home = Home(tmp_path)
    made = canaries.make(SETTINGS)

    first = canaries.write_table(SETTINGS, home=home)
    again = canaries.write_table(SETTINGS, home=home)

    rows = DeltaTable(home.tables / "canaries").to_pyarrow_table().to_pylist()
    assert (first.version, again.version) == (0, 1)
    assert len(rows) == len({row["id"] for row in rows}) == len({row["text"] for row in rows}) == 5 * (1 + 4 + 16)
    for canary in made:
        assert sum(canary.secret in row["text"] for row in rows) == canary.level
    log = b"".join(path.read_bytes() for path in (home.tables / "canaries" / "_delta_log").glob("*.json"))
    assert made[-1].secret.encode() not in log


def test_prepare_takes_copies_for_near_duplicates_and_canaries_for_different_texts() -> None:
    one, other = canaries.make(SETTINGS)[-2:]
    texts = pa.array([one.copy(1), one.copy(16), other.copy(1)])
    (found,) = shingles(texts, words=5)
    own = [set(found.hashes[low:high]) for low, high in zip(found.offsets, found.offsets[1:], strict=False)]

    def alike(a: int, b: int) -> float:
        return len(own[a] & own[b]) / len(own[a] | own[b])

    assert alike(0, 1) > 0.85
    assert alike(0, 2) < 0.6


def test_no_detector_of_private_data_takes_a_canary_for_anything() -> None:
    by = detect.detectors()
    made = canaries.make(CanarySettings(per_level=100))
    assert not [canary for canary in made if detect.find(canary.copy(3).encode(), by=by)]


def test_copies_are_counted_in_the_training_split_of_the_documents(tmp_path) -> None:
    home, made = Home(tmp_path), canaries.make(SETTINGS)
    once, often = made[5], made[-1]
    documents(home, {"train": [once.copy(1), *(often.copy(n) for n in range(1, 12)), "else"],
                     "heldout": [often.copy(12)]})  # fmt: skip

    found = canaries.planted(made, home=home, documents=DOCUMENTS)

    assert (found[once], found[often], sum(found.values())) == (1, 11, 12)


@given(st.integers(0, 50))
def test_exposure_is_the_rank_among_secrets_that_nobody_wrote(better: int) -> None:
    canary = canaries.make(SETTINGS)[0]
    asked = []

    def likelihoods(subject, pairs):
        asked.extend(pairs)
        return [Likelihood(10.0, 4, False)] + [Likelihood(9.0 if n < better else 11.0, 4, False) for n in range(50)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exposure, "likelihoods", likelihoods)
        bits = exposure.exposure(None, canary, settings=SETTINGS)

    assert bits == pytest.approx(math.log2(51) - math.log2(better + 1))
    assert asked[0] == (canary.copy(1).removesuffix(f" {canary.secret}."), f" {canary.secret}.")
    assert len(set(asked)) == 51


def test_a_model_that_learned_a_canary_exposes_it_and_no_other(tmp_path, tmp_path_factory) -> None:
    made = canaries.make(SETTINGS)
    learned, never = made[5], made[0]
    subject = learn(make_subject(tmp_path_factory.mktemp("learning"), scale=0.5), learned.copy(1))
    home = Home(tmp_path)
    documents(home, {"train": [learned.copy(1)]})

    report = exposure.measure(subject, settings=SETTINGS, home=home, documents=DOCUMENTS)

    assert report.exposures[learned] == pytest.approx(math.log2(51))
    assert report.exposures[never] < math.log2(51)
    assert [(level.repeats, level.n) for level in report.levels] == [(0, 19), (1, 1)]
    mean = np.mean([bits for canary, bits in report.exposures.items() if canary != learned])
    assert report.once_above == pytest.approx(math.log2(51) - mean)
    assert mean < 3
    assert report.correlation.value > 0


def test_what_was_learned_comes_out_word_for_word(tmp_path, tmp_path_factory) -> None:
    text = " ".join(TEXTS[:12])
    subject = learn(make_subject(tmp_path_factory.mktemp("learning"), scale=0.5), text, steps=80)
    home = Home(tmp_path)
    documents(home, {"train": [text, "too short"], "heldout": [" ".join(TEXTS[200:212])]})

    train = extraction.measure(subject, n=5, home=home, documents=DOCUMENTS, split="train")
    heldout = extraction.measure(subject, n=5, home=home, documents=DOCUMENTS, split="heldout")

    assert (train.n, train.whole, train.half, train.share) == (1, 1, 1, 1.0)
    assert (heldout.n, heldout.whole) == (1, 0)


def test_personal_data_that_a_model_writes_is_counted_by_type(subject: Subject, monkeypatch) -> None:
    written = ["mail ada.lovelace@example.org or call", "nothing here", "a@example.org and b.c@example.net"]
    monkeypatch.setattr(emission, "answers", lambda subject, prompts, decoding: [written])

    found = emission.measure(subject, n=3)

    assert (dict(found.by_type), found.texts, found.n) == ({"email": 3}, 2, 3)


def test_texts_are_sampled_and_differ(subject: Subject) -> None:
    asked = []

    def answers(subject, prompts, decoding):
        asked.append((subject.document_start, prompts, decoding.samples, decoding.temperature))
        return original(subject, prompts, decoding)

    original = emission.answers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emission, "answers", answers)
        assert emission.measure(subject, n=4).n == 4
    assert asked == [(True, [""], 4, 1.0)]


def test_only_what_is_asked_for_is_measured(subject: Subject, tmp_path) -> None:
    home = Home(tmp_path)
    documents(home, {"train": [text * 8 for text in TEXTS[:6]], "heldout": [text * 8 for text in TEXTS[6:9]]})

    def measured(**asked) -> set[str]:
        settings = SafetySettings(**asked)
        return set(safety.measure(home, subject=lambda: subject, documents=DOCUMENTS, settings=settings))

    assert measured() == set()
    assert measured(extraction=3) == {
        "extracted_train",
        "extracted_train_of",
        "extracted_heldout",
        "extracted_heldout_of",
    }
    assert {"emitted_texts", "emitted_of"} <= measured(emission=2)
    found = measured(canaries=CanarySettings(per_level=2, candidates=10))
    assert {"exposure_0", "exposure_0_low", "exposure_0_high"} <= found
    assert safety.EXPOSURE not in found  # none was planted
    assert "exposure_correlation" not in found  # it is no number


def test_the_time_to_a_next_token_is_the_median(subject: Subject, monkeypatch) -> None:
    ticks = iter([0.0, 0.010, 0.030, 0.033, 1.0, 1.004, 1.009, 1.019])
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(ticks))

    assert latency.next_token_ms(subject, tokens=3, rounds=2) == pytest.approx(7.5)
