"""Images without a smear: many of each kind, the same for the same seed."""

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


def test_each_kind_has_many_images_like_decoded_uploads(far: Far) -> None:
    assert tuple(far) == KINDS
    for images in far.values():
        assert len(images) >= 100
        assert len({pixels.tobytes() for pixels in images}) == len(images)
        assert {pixels.dtype for pixels in images} == {np.dtype(np.uint8)}
        assert {pixels.shape for pixels in images} == {(h, w, 3) for w, h in SIZES}
        # torch.from_numpy requires this.
        assert all(pixels.flags.c_contiguous for pixels in images)


def test_the_seed_decides(far: Far) -> None:
    again, other = far_images(seed=0), far_images(seed=1)
    for kind in KINDS:
        for first, second in zip(far[kind], again[kind], strict=True):
            np.testing.assert_array_equal(first, second)
        drawn = {pixels.tobytes() for pixels in far[kind]}
        assert not drawn & {pixels.tobytes() for pixels in other[kind]}


def test_photographs_are_pictures(far: Far) -> None:
    """None is empty, and more than half are in colour."""
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
