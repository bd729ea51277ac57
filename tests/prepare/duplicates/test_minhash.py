"""Signatures against exact Jaccard similarity: unbiased, S-shaped, the same in whatever batch, and stored for good."""

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from tessera.prepare.duplicates import minhash
from tessera.prepare.duplicates.minhash import EMPTY, band_hashes, signatures, similarity
from tessera.prepare.duplicates.settings import NearDuplicateSettings, candidate_share

SETTINGS = NearDuplicateSettings()
DEFAULTS = {"bands": SETTINGS.bands, "rows": SETTINGS.rows, "words": SETTINGS.shingle_words}
SIZE = SETTINGS.bands * SETTINGS.rows


def pairs_of_sets(*, pairs: int, common: int, each: int, seed: int) -> pa.Array:
    """Two texts a pair, of distinct words, so that with one word a shingle the Jaccard similarity is common / (common +
    2 * each) exactly."""
    words = np.random.default_rng(seed).integers(2**62, size=(pairs, common + 2 * each))
    texts = []
    for row in words:
        assert len(set(row.tolist())) == len(row)
        shared, left, right = np.split(row, [common, common + each])
        texts += [" ".join(map(str, [*shared, *left])), " ".join(map(str, [*right, *shared]))]
    return pa.array(texts)


@pytest.mark.parametrize(
    ("common", "each"), [(1, 1), (2, 1), (4, 1), (3, 6), (20, 20), (80, 10), (300, 30), (500, 500)]
)
def test_the_estimate_is_unbiased(common: int, each: int) -> None:
    """Of sets smaller and larger than a signature; the mean over the pairs is within 4 standard errors."""
    texts = pairs_of_sets(pairs=400, common=common, each=each, seed=common * 1000 + each)

    made = signatures(texts, size=SIZE, words=1)

    estimates = [similarity(made[i], made[i + 1]) for i in range(0, len(made), 2)]
    exact = common / (common + 2 * each)
    assert abs(np.mean(estimates) - exact) < 4 * np.std(estimates) / len(estimates) ** 0.5


@pytest.mark.parametrize(("common", "each"), [(80, 10), (300, 30), (2000, 500)])
def test_the_estimate_is_as_sharp_as_independent_minima_are(common: int, each: int) -> None:
    """Its variance is at most that of SIZE independent permutations, s(1 - s) / SIZE, but for sampling error."""
    texts = pairs_of_sets(pairs=400, common=common, each=each, seed=5)

    made = signatures(texts, size=SIZE, words=1)

    exact = common / (common + 2 * each)
    estimates = np.array([similarity(made[i], made[i + 1]) for i in range(0, len(made), 2)])
    assert np.mean((estimates - exact) ** 2) < 1.5 * exact * (1 - exact) / SIZE + exact / (common + 2 * each) / 8


@pytest.mark.parametrize(("common", "each"), [(200, 150), (300, 100), (400, 60), (400, 50), (450, 25)])
def test_candidates_follow_the_s_curve(common: int, each: int) -> None:
    texts = pairs_of_sets(pairs=600, common=common, each=each, seed=common)

    bands = np.array(band_hashes(texts, bands=SETTINGS.bands, rows=SETTINGS.rows, words=1).to_pylist())

    found = (bands[::2] == bands[1::2]).any(axis=1).mean()
    expected = candidate_share(common / (common + 2 * each), bands=SETTINGS.bands, rows=SETTINGS.rows)
    assert abs(found - expected) < 4 * (expected * (1 - expected) / 600) ** 0.5 + 0.02


def test_the_defaults_find_what_they_promise() -> None:
    assert candidate_share(0.8, bands=SETTINGS.bands, rows=SETTINGS.rows) > 0.99
    assert candidate_share(0.4, bands=SETTINGS.bands, rows=SETTINGS.rows) < 0.02


def test_both_ways_of_densification_agree() -> None:
    """A bin takes from the same place, whichever way is the faster one for its signature."""
    for filled in (1, 3, 20, 27, 28, 29, 100, SIZE - 1):
        bins = np.full((5, SIZE), EMPTY)
        random = np.random.default_rng(filled)
        for row in bins:
            row[random.permutation(SIZE)[:filled]] = random.integers(2**63, size=filled)
        one, other = minhash._from_filled(bins), minhash._from_empty(bins)
        assert (one == other).all()
        assert (one[bins != EMPTY] == bins[bins != EMPTY]).all()
        assert [set(row) for row in one] == [set(row) - {EMPTY} for row in bins]


def test_a_signature_depends_on_its_text_alone() -> None:
    texts = [f"{'some words ' * (i % 7)} and number {i}" for i in range(700)] + ["", "...", None, "one"]
    together = band_hashes(pa.array(texts), **DEFAULTS).to_pylist()

    assert together[-4:-1] == [[], [], None]
    assert {len(bands) for bands in together[:-4]} == {SETTINGS.bands}
    for row in (0, 1, 255, 256, 699, 703):
        assert band_hashes(pa.array([texts[row]]), **DEFAULTS).to_pylist() == [together[row]]
    assert band_hashes(pa.array([], pa.string()), **DEFAULTS).to_pylist() == []


def test_a_document_longer_than_a_slice_has_the_signature_of_its_set(monkeypatch: pytest.MonkeyPatch) -> None:
    text = pa.array([" ".join(str(i * i) for i in range(5000)), "short one"])
    whole = signatures(text, size=SIZE, words=5)
    monkeypatch.setattr("tessera.prepare.duplicates.shingles.SLICE_BYTES", 1000)

    assert (signatures(text, size=SIZE, words=5) == whole).all()


def test_bands_do_not_meet_each_other() -> None:
    """One shingle fills all minima with one hash, and yet every band has a bucket of its own."""
    (bands,) = band_hashes(pa.array(["word"]), **DEFAULTS).to_pylist()
    assert len(set(bands)) == SETTINGS.bands


def test_stored_band_hashes_stay_comparable() -> None:
    """`decisions` keeps them: a change here needs a new format of that table."""
    (bands,) = band_hashes(
        pa.array(["The quick brown fox jumps over the lazy dog, 漢字 and Ärger."]), **DEFAULTS
    ).to_pylist()
    assert bands[:3] == [5298990418344282612, 1715031901068402401, -1546148067701970027]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bands": 200, "rows": 8}, "at most 1024"),
        ({"bands": 2, "rows": 16}, "give more bands or fewer rows"),
        ({"threshold": 0.5}, "find 10% of the pairs at threshold 0.5"),
        ({"threshold": 1.5}, "less than or equal to 1"),
    ],
)
def test_settings_that_find_too_little_are_refused(values: dict[str, float], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        NearDuplicateSettings.model_validate(values)
