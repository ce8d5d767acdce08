"""The images that are no smear: enough of each kind, the same each time, and what they claim."""

from __future__ import annotations

import numpy as np
import pytest

from handler.preprocessing import Pixels
from training.out_of_distribution import CROPS, PHOTOGRAPHS, SIZES, far_images

KINDS = ("photograph", "text", "blank", "noise")

Far = dict[str, list[Pixels]]


@pytest.fixture(scope="module")
def far() -> Far:
    return far_images(seed=0)


def contrasts(images: list[Pixels]) -> np.ndarray:
    """Return how much the tones of each image vary."""
    return np.array([pixels.std((0, 1)).mean() for pixels in images])


def roughness(images: list[Pixels]) -> np.ndarray:
    """Return how much each image's neighbouring pixels differ."""
    return np.array([abs(np.diff(pixels.astype(int), axis=1)).mean() for pixels in images])


def test_there_are_four_kinds(far: Far) -> None:
    assert tuple(far) == KINDS
    assert len(far["photograph"]) == len(PHOTOGRAPHS) * CROPS


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_many_and_all_differ(far: Far, kind: str) -> None:
    assert len(far[kind]) >= 100
    assert len({pixels.tobytes() for pixels in far[kind]}) == len(far[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_they_look_like_decoded_uploads(far: Far, kind: str) -> None:
    assert {pixels.dtype for pixels in far[kind]} == {np.dtype(np.uint8)}
    assert {pixels.shape for pixels in far[kind]} == {(h, w, 3) for w, h in SIZES}
    # As torch.from_numpy wants them.
    assert all(pixels.flags.c_contiguous for pixels in far[kind])


def test_the_seed_decides(far: Far) -> None:
    again, other = far_images(seed=0), far_images(seed=1)
    for kind in KINDS:
        for first, second in zip(far[kind], again[kind], strict=True):
            np.testing.assert_array_equal(first, second)
        drawn = {pixels.tobytes() for pixels in far[kind]}
        assert not drawn & {pixels.tobytes() for pixels in other[kind]}


def test_photographs_are_pictures(far: Far) -> None:
    """Each of them, so that none is an empty stand-in; and more than half in colour."""
    by_photograph = np.array(contrasts(far["photograph"])).reshape(CROPS, len(PHOTOGRAPHS))
    assert (by_photograph.max(0) > 10).all()
    coloured = [bool(np.ptp(pixels, axis=2).any()) for pixels in far["photograph"]]
    assert np.mean(coloured) > 0.5


def test_text_has_ink(far: Far) -> None:
    assert (contrasts(far["text"]) > 3).all()
    assert (roughness(far["text"]) > 0.5).mean() > 0.95


def test_blanks_are_smooth_and_of_many_colours(far: Far) -> None:
    assert (roughness(far["blank"]) < 6).all()
    colours = np.array([pixels.mean((0, 1)) for pixels in far["blank"]])
    purple = (colours[:, 1] < colours[:, 0]) & (colours[:, 1] < colours[:, 2])
    assert 0.3 < purple.mean() < 0.9
    assert (colours.std(0) > 30).all()


def test_noise_is_fine_and_coarse(far: Far) -> None:
    assert (contrasts(far["noise"]) > 3).all()
    grain = roughness(far["noise"]) / contrasts(far["noise"])
    assert grain.min() < 0.05
    assert grain.max() > 0.9
