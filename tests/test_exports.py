"""The exports of a count, as the page downloads them, read by a library of each format."""

import csv
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("playwright", reason="Playwright is not installed")

from conftest import CARDS, Open
from fhir.resources.R4B.bundle import Bundle
from page_stand_in import DrawingsStandIn, choose_and_wait, download_as
from PIL import Image
from playwright.sync_api import Page, expect
from pycocotools.coco import COCO

from frontend import samples
from training.protocol import FIELD_CLASSES

# The field has a cell of each class, the last of them uncertain.
FIELD = next(each.path for each in samples.drawn() if each.name.startswith("field"))
SINGLE = next(each.path for each in samples.drawn() if each.label)
FIELD_CELLS = len(FIELD_CLASSES)
BOXES = [(100 + 100 * at, 60, 180 + 100 * at, 140) for at in range(FIELD_CELLS)]


@pytest.fixture
def page(open_address: Open, drawings: tuple[str, DrawingsStandIn]) -> Page:
    """Return a page with a count of the field and a single cell; the first cell is a band."""
    page = open_address(drawings[0])
    choose_and_wait(page, FIELD, SINGLE)
    page.locator("#sort").select_option("order")
    page.locator(".tile").first.click()
    page.keyboard.press("b")
    page.get_by_label("Sample ID").fill("S-1")
    page.get_by_label("Reviewed by").fill("Ana")
    page.get_by_label("Leukocytes").fill("7.2")
    return page


@pytest.fixture
def stand_in(drawings: tuple[str, DrawingsStandIn]) -> Iterator[DrawingsStandIn]:
    """Return the service behind the page; a test may change its answer."""
    yield drawings[1]
    vars(drawings[1]).pop("cell", None)


def final_classes() -> list[str]:
    """Return the classes of the field's cells, from left to right."""
    return ["BAND", *FIELD_CLASSES[1:-1], "UNDECIDED"]


def size_of(image: Path) -> tuple[int, int]:
    with Image.open(image) as opened:
        return opened.size


def test_coco(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    coco = COCO(download_as(page, "coco"))
    [image] = [each for each in coco.loadImgs(coco.getImgIds()) if each["file_name"] == FIELD.name]
    assert (image["width"], image["height"]) == size_of(FIELD)
    found = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
    boxes = [(x, y, x + width, y + height) for x, y, width, height in (a["bbox"] for a in found)]
    assert boxes == BOXES
    names = [coco.loadCats([each["category_id"]])[0]["name"] for each in found]
    assert names == final_classes()
    assert [each["attributes"]["confirmed"] for each in found] == [True] + [False] * (
        FIELD_CELLS - 1
    )


def test_yolo(page: Page) -> None:
    with zipfile.ZipFile(download_as(page, "yolo")) as archive:
        assert archive.testzip() is None
        names = yaml.safe_load(archive.read("data.yaml"))["names"]
        assert archive.read("classes.txt").decode().split() == list(names.values())
        lines = archive.read(f"labels/{FIELD.stem}.txt").decode().splitlines()
    width, height = size_of(FIELD)
    assert [names[int(line.split()[0])] for line in lines] == final_classes()
    for line, box in zip(lines, BOXES, strict=True):
        x, y, wide, high = map(float, line.split()[1:])
        sides = [x - wide / 2, y - high / 2, x + wide / 2, y + high / 2]
        pixels = [side * (height if at % 2 else width) for at, side in enumerate(sides)]
        assert pixels == pytest.approx(box, abs=0.01)


def test_label_studio(page: Page) -> None:
    """By the fields that its import documents; its own library brings pandas and OpenCV."""
    tasks = json.loads(download_as(page, "labelstudio").read_text())
    field, single = tasks
    assert [task["data"]["image"] for task in tasks] == [FIELD.name, SINGLE.name]
    assert single["annotations"] == []
    for part in (field["predictions"][0], field["annotations"][0]):
        ids = [region["id"] for region in part["result"]]
        assert len(set(ids)) == len(ids)
        for region in part["result"]:
            check_region(region)
    assert field["predictions"][0]["model_version"] == "3.0"
    labels = [each["value"]["rectanglelabels"] for each in field["predictions"][0]["result"]]
    assert labels == [[name] for name in FIELD_CLASSES]
    [annotated] = field["annotations"][0]["result"]
    assert annotated["value"]["rectanglelabels"] == ["BAND"]


def check_region(region: dict[str, Any]) -> None:
    """Check a region: its box is in percent of the image."""
    width, height = size_of(FIELD)
    assert (region["original_width"], region["original_height"]) == (width, height)
    assert (region["type"], region["from_name"], region["to_name"]) == (
        "rectanglelabels",
        "label",
        "image",
    )
    value = region["value"]
    left, top = value["x"] * width / 100, value["y"] * height / 100
    right, bottom = left + value["width"] * width / 100, top + value["height"] * height / 100
    expected = BOXES[int(region["id"].removeprefix("cell-")) - 1]
    assert (left, top, right, bottom) == pytest.approx(expected)


def test_fhir(page: Page) -> None:
    # The edited range is the laboratory's.
    page.get_by_label("Lymphocyte, highest reference value").fill("4,5")
    bundle = Bundle.model_validate_json(download_as(page, "fhir").read_text())
    report, *results, device = [each.resource for each in bundle.entry]
    assert (report.status, report.specimen[0].display) == ("preliminary", "S-1")
    assert report.performer[0].display == "Ana"
    assert "Not for diagnosis" in report.conclusion
    assert {each.reference for each in report.result} == {
        each.fullUrl for each in bundle.entry[1:-1]
    }
    assert [each.value for each in device.version] == [
        "3.0",
        CARDS["3.0"]["sha256"]["network.onnx"],
    ]
    values = {each.code.coding[0].code: each for each in results if each.code.coding}
    # Of four counted cells one is a band, and one more a neutrophil or not.
    shares = ["26511-6", "26478-8", "26485-3", "26450-7"]
    counted = int(page.locator("#counted").inner_text())
    for code in shares:
        assert values[code].valueQuantity.unit == "%"
        assert values[code].device.reference == bundle.entry[-1].fullUrl
    assert float(values["26511-6"].valueQuantity.value) == pytest.approx(100 / counted, abs=0.05)
    lymphocytes = values["26474-7"]
    assert float(lymphocytes.valueQuantity.value) == pytest.approx(7.2 / counted, abs=0.005)
    assert float(lymphocytes.referenceRange[0].high.value) == 4.5
    assert float(values["26464-8"].valueQuantity.value) == 7.2


def test_csv_follows_the_language(page: Page) -> None:
    page.get_by_role("link", name="Português").click()
    expect(page.locator("html")).to_have_attribute("lang", "pt-BR")
    # The fields and their values stay.
    expect(page.locator("#leukocytes")).to_have_value("7,2")
    with download_as(page, "csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    assert rows[0]["left"] == "100,0"
    shares = [float(rows[0][name.lower()].replace(",", ".")) for name in FIELD_CLASSES]
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    assert [row["final_class"] for row in rows[:2]] == ["BAND", FIELD_CLASSES[1]]


def test_a_count_without_boxes_has_no_file_of_boxes(page: Page, stand_in: DrawingsStandIn) -> None:
    page.locator("[data-do=clear]").click()
    of_class = DrawingsStandIn.cell
    stand_in.cell = lambda label, top, box=None: of_class(stand_in, label, top)  # type: ignore[method-assign]
    choose_and_wait(page, FIELD, SINGLE)
    page.locator("#format").select_option("coco")
    page.locator("[data-do=export]").click()
    expect(page.locator("#export-note")).to_contain_text("has no boxes")
