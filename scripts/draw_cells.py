"""Draw the project's own sample pictures: `python -m scripts.draw_cells`.

It writes a cell of each class, the known images of the service, to serving/samples/, and the page's
samples to frontend/static/samples/. No pixel comes from a real image. Do not use the drawings to
train or evaluate a model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from scripts.smear import Colour, Granules, Placed, Smear, WhiteCell, draw_field

ROOT = Path(__file__).resolve().parent.parent
SEED = 3
SIZE = (640, 480)
ROSE: Colour = (206, 118, 138)
CORAL: Colour = (220, 134, 126)

WHITE_CELLS: dict[str, WhiteCell] = {
    "EOSINOPHIL": WhiteCell(
        radius=0.155, wobble=0.025, cytoplasm=(218, 170, 182), nucleus=(114, 84, 176),
        lobes=(2, 2), lobe_radius=0.4, arc=2.0, arc_radius=0.48, strand=0.11,
        lace=0.3, looseness=0.05,
        granules=Granules(520, 0.055, (ROSE, CORAL, (196, 108, 136), (226, 154, 146)), 0.75),
        overlay=Granules(28, 0.05, (ROSE, CORAL), 0.35),
    ),
    "LYMPHOCYTE": WhiteCell(
        radius=0.118, wobble=0.03, cytoplasm=(176, 190, 222), nucleus=(108, 71, 171),
        lobes=(1, 1), lobe_radius=0.91, arc=0.0, arc_radius=0.05, strand=0.0,
        lace=0.12, looseness=0.0,
    ),
    "MONOCYTE": WhiteCell(
        radius=0.182, wobble=0.06, cytoplasm=(178, 180, 204), nucleus=(142, 112, 196),
        lobes=(7, 7), lobe_radius=0.34, arc=3.7, arc_radius=0.42, strand=0.33,
        lace=0.75, looseness=0.03,
        granules=Granules(500, 0.014, ((156, 142, 188),), 0.4),
        overlay=Granules(10, 0.05, ((208, 208, 222),), 0.55),
    ),
    "NEUTROPHIL": WhiteCell(
        radius=0.155, wobble=0.03, cytoplasm=(220, 202, 214), nucleus=(114, 84, 178),
        lobes=(4, 5), lobe_radius=0.28, arc=4.4, arc_radius=0.47, strand=0.07,
        lace=0.35, looseness=0.09,
        granules=Granules(1300, 0.017, ((192, 152, 192), (208, 164, 186)), 0.38),
    ),
}  # fmt: skip

# For the gallery, closer to nature. WHITE_CELLS stays as it is: the tests and golden samples
# (serving/samples) know its pictures.
NATURAL_CELLS: dict[str, WhiteCell] = {
    "EOSINOPHIL": replace(
        WHITE_CELLS["EOSINOPHIL"], wobble=0.035, cytoplasm=(214, 166, 176), nucleus=(104, 80, 168),
        lobe_radius=0.36, taper=0.2, knobs=3, bend=0.05, grain=0.12, lace=0.55, looseness=0.07,
        granules=Granules(1300, 0.038, (ROSE, (214, 134, 132), (196, 112, 136)), 0.55),
        overlay=Granules(40, 0.034, (ROSE, CORAL), 0.25),
    ),
    "LYMPHOCYTE": replace(
        WHITE_CELLS["LYMPHOCYTE"], radius=0.104, wobble=0.035, cytoplasm=(168, 180, 212),
        nucleus=(98, 66, 158), lobe_radius=0.86, arc_radius=0.07, grain=0.2, lace=0.17,
    ),
    "MONOCYTE": replace(
        WHITE_CELLS["MONOCYTE"], wobble=0.08, nucleus=(134, 106, 188), bend=0.05, grain=0.13,
        lace=0.7,
        overlay=Granules(14, 0.035, ((206, 206, 222),), 0.5),
    ),
    "NEUTROPHIL": replace(
        WHITE_CELLS["NEUTROPHIL"], wobble=0.035, nucleus=(104, 78, 170), lobe_radius=0.25,
        taper=0.16, knobs=3, bend=0.05, grain=0.12, lace=0.55, looseness=0.1,
        granules=Granules(1600, 0.018, ((186, 146, 190), (208, 160, 184), (228, 212, 222)), 0.38),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A picture of the gallery."""

    name: str
    seed: int
    smear: Smear
    cells: tuple[Placed, ...] = ()  # the white ones
    scale: float = 1.0


FIELD: tuple[Placed, ...] = (
    ("NEUTROPHIL", 0.24, 0.3),
    ("LYMPHOCYTE", 0.72, 0.27),
    ("EOSINOPHIL", 0.5, 0.75),
)
GREY = Smear((224, 222, 214), gaps=(1.3, 1.8, 2.1))
WARM = Smear((242, 229, 206), (1.1, 1.05, 1.0), (1.6, 2.1))
COOL = Smear((224, 225, 230), (1.0, 1.05, 1.0), (1.3, 1.8, 2.1))
ROSY = Smear((234, 222, 222), (0.9, 1.0, 0.9), (1.3, 1.8, 2.1))
GALLERY = (
    Drawing("eosinophil-1", 1, ROSY, (("EOSINOPHIL", 0.48, 0.5),)),
    Drawing("eosinophil-2", 1, WARM, (("EOSINOPHIL", 0.55, 0.47),)),
    Drawing("field-1", 1, COOL, FIELD, scale=0.6),
    Drawing("lymphocyte-1", 3, COOL, (("LYMPHOCYTE", 0.47, 0.5),)),
    Drawing("monocyte-1", 16, ROSY, (("MONOCYTE", 0.5, 0.5),)),
    Drawing("neutrophil-1", 7, GREY, (("NEUTROPHIL", 0.52, 0.5),)),
    Drawing("neutrophil-2", 5, WARM, (("NEUTROPHIL", 0.45, 0.52),)),
    Drawing("red-cells-1", 6, GREY, scale=0.8),
)


def draw_cell(label: str, seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """Draw one white cell of the class among red cells; the same seed gives the same picture."""
    return draw_field([(label, 0.5, 0.5)], [seed, *label.encode()], size, WHITE_CELLS)


def draw_gallery(folder: Path) -> None:
    """Draw the page's samples into a folder."""
    for each in GALLERY:
        parts = each.cells, each.seed, SIZE, NATURAL_CELLS, each.smear, each.scale
        draw_field(*parts).save(folder / f"{each.name}.jpg", quality=90, optimize=True)


if __name__ == "__main__":
    for name in WHITE_CELLS:
        path = ROOT / "serving" / "samples" / f"{name.lower()}.png"
        draw_cell(name, SEED).save(path, optimize=True)
    draw_gallery(ROOT / "frontend" / "static" / "samples")
