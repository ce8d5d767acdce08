"""The drawn scenes that teach what is no cell."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import scenes, workers


def test_scenes_are_drawn_once_and_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(scenes, "SCENES", 3)
    paths = scenes.draw_scenes(tmp_path)
    pictures = [np.asarray(Image.open(path)) for path in paths]
    assert {picture.shape for picture in pictures} == {(360, 480, 3)}
    assert all(picture.std() > 5 for picture in pictures)
    assert all((pictures[0] != other).any() for other in pictures[1:])
    monkeypatch.setattr(scenes, "scene", None)
    assert scenes.draw_scenes(tmp_path) == paths
