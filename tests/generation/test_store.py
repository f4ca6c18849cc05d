"""Pictures are drawn again when anything they were made from differs, and only then."""

from __future__ import annotations

import numpy as np
import pytest

from sgdm_utils.generation.store import PictureStore

PICTURES = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
GIVEN = (np.ones((2, 3), np.float32), None, {"embedding_noise": 0.5})


def test_what_was_kept_comes_back_to_a_new_object_with_the_same_identity(tmp_path):
    first = PictureStore(tmp_path / "s", {"pipeline": "abc", "steps": 2})
    assert first.get(first.key(*GIVEN)) is None
    first.put(first.key(*GIVEN), PICTURES)
    again = PictureStore(tmp_path / "s", {"steps": 2, "pipeline": "abc"})
    assert np.array_equal(again.get(again.key(*GIVEN)), PICTURES)


@pytest.mark.parametrize(
    "given",
    [
        (np.full((2, 3), 1.0001, np.float32), None, {"embedding_noise": 0.5}),
        (np.ones((3, 2), np.float32), None, {"embedding_noise": 0.5}),
        (np.ones((2, 3), np.float64), None, {"embedding_noise": 0.5}),
        (np.ones((2, 3), np.float32), np.zeros(1), {"embedding_noise": 0.5}),
        (np.ones((2, 3), np.float32), None, {"embedding_noise": 0.6}),
    ],
)
def test_other_conditions_have_another_key(tmp_path, given):
    store = PictureStore(tmp_path, {"pipeline": "abc"})
    assert store.key(*given) != store.key(*GIVEN)


def test_another_generator_has_another_key(tmp_path):
    keys = {PictureStore(tmp_path, {"pipeline": p}).key(*GIVEN) for p in ("abc", "abd")}
    assert len(keys) == 2


def test_a_damaged_set_is_drawn_again_and_said_so(tmp_path):
    store = PictureStore(tmp_path, {})
    key = store.key(1)
    store.put(key, PICTURES)
    path = tmp_path / f"{key}.npy"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.warns(UserWarning, match="damaged"):
        assert store.get(key) is None


def test_only_eight_bit_pictures_are_kept(tmp_path):
    store = PictureStore(tmp_path, {})
    with pytest.raises(ValueError, match="float64"):
        store.put("k", PICTURES / 255)
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_asked_for_is_pruned(tmp_path):
    store = PictureStore(tmp_path, {})
    for key in ("a", "b"):
        store.put(key, PICTURES)
    later = PictureStore(tmp_path, {})
    later.get("b")
    assert later.prune() == 1
    assert [p.stem for p in tmp_path.glob("*.npy")] == ["b"]
