"""Images without a smear: several kinds, each as it should look, the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from handler.preprocessing import Pixels
from training import out_of_distribution
from training.out_of_distribution import PHOTOGRAPHS, SIZES, far_images

CROPS, DRAWN = 2, 20

Far = dict[str, list[Pixels]]


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    """Draw fewer images than the evaluation does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(out_of_distribution, "CROPS", CROPS)
        patch.setattr(out_of_distribution, "DRAWN", DRAWN)
        yield


@pytest.fixture(scope="module")
def far(few: None) -> Far:
    return far_images(seed=0)


def contrasts(images: list[Pixels]) -> np.ndarray:
    """Return how much the tones of each image vary."""
    return np.array([pixels.std((0, 1)).mean() for pixels in images])


def test_images_look_like_decoded_uploads_and_the_seed_decides(far: Far) -> None:
    again, other = far_images(seed=0), far_images(seed=1)
    counts = {"photograph": CROPS * len(PHOTOGRAPHS), "text": DRAWN, "blank": DRAWN, "noise": DRAWN}
    assert {kind: len(images) for kind, images in far.items()} == counts
    for kind, images in far.items():
        drawn = [pixels.tobytes() for pixels in images]
        assert len(set(drawn)) == len(images)
        assert {pixels.dtype for pixels in images} == {np.dtype(np.uint8)}
        assert {pixels.shape for pixels in images} <= {(h, w, 3) for w, h in SIZES}
        # torch.from_numpy requires this.
        assert all(pixels.flags.c_contiguous for pixels in images)
        assert drawn == [pixels.tobytes() for pixels in again[kind]]
        assert not set(drawn) & {pixels.tobytes() for pixels in other[kind]}


def test_photographs_are_pictures(far: Far) -> None:
    """None is empty, and more than half are in colour."""
    by_photograph = contrasts(far["photograph"]).reshape(CROPS, len(PHOTOGRAPHS))
    assert (by_photograph.max(0) > 10).all()
    coloured = [bool(np.ptp(pixels, axis=2).any()) for pixels in far["photograph"]]
    assert np.mean(coloured) > 0.5
