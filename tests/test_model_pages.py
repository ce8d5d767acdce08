"""The model's own pages: what they show is what was measured, and what serves."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import CARDS, ROOT, VERSIONS
from flask import Flask
from flask.testing import FlaskClient
from page_stand_in import StandIn, failure

from frontend import charts
from serving.deployment.routing import Routing


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture
def models(app: Flask, tmp_path: Path) -> Path:
    """Let the page read a copy of the models, and return where it lies."""
    for version in VERSIONS:
        (tmp_path / version).mkdir()
        for path in (ROOT / "models" / version).glob("*"):
            if path.suffix in (".json", ".pt"):
                shutil.copy(path, tmp_path / version)
    app.config["MODELS_DIR"] = tmp_path
    return tmp_path


def percent(value: float, language: str = "en") -> str:
    shown = f"{100 * value:.1f}%"
    return shown if language == "en" else shown.replace(".", ",")


def metrics(version: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / "models" / version / "metrics.json").read_text())
    return document


@pytest.mark.parametrize("language", ["en", "pt-BR"])
def test_all_versions_newest_first(client: FlaskClient, language: str) -> None:
    page = client.get("/models", headers={"Accept-Language": language}).text
    assert f'<html lang="{language}">' in page
    linked = re.findall(r'href="/models/([^"]+)"', page)
    assert linked == sorted(CARDS, reverse=True)
    for version in VERSIONS:
        assert percent(CARDS[version]["test_accuracy"]["value"], language) in page
    assert page.count("<h1") == 1


@pytest.mark.parametrize("language", ["en", "pt-BR"])
@pytest.mark.parametrize("version", VERSIONS)
def test_figures_are_those_that_were_measured(
    client: FlaskClient, version: str, language: str
) -> None:
    page = client.get(f"/models/{version}", headers={"Accept-Language": language}).text
    found, seed = metrics(version), metrics(version)["seed_project"]
    figures = [
        found["test"]["image_accuracy"],
        found["test"]["photograph_accuracy"],
        found["test_where_confident"]["image_accuracy"],
        found["cross_validation"]["macro_recall"],
        found["pbc"]["as_uploaded"]["macro_recall"],
        *(each[what] for each in found["test"]["classes"].values() for what in ("precision", "f1")),
    ]
    for figure in figures:
        assert percent(figure["value"], language) in page
        for bound in figure["interval"]:
            assert percent(bound, language) in page
    for row in seed["classes"].values():
        assert percent(row["recall"], language) in page
    assert percent(seed["image_accuracy_by_its_table"], language) in page
    for row in found["test"]["confusion"]:
        for count in row:
            assert f">{count:,}<".replace(",", "," if language == "en" else ".") in page
    assert CARDS[version]["sha256"]["weights.pt"] in page


@pytest.mark.parametrize("version", VERSIONS)
def test_charts_say_what_they_show(client: FlaskClient, version: str) -> None:
    page = client.get(f"/models/{version}").text
    drawn = re.findall(r'<svg class="chart".*?</svg>', page, re.DOTALL)
    # Calibration before and after; loss and accuracy.
    assert len(drawn) == 4
    for chart in drawn:
        assert re.search(
            r'role="img" aria-labelledby="([\w-]+)">\s*<title id="\1">.+?</title>', chart
        )
    assert len(set(re.findall(r'<title id="([\w-]+)"', page))) == 4
    bins = metrics(version)["calibration"]["after"]["bins"]
    assert drawn[1].count("<circle") == len(bins)
    assert page.count("<h1") == 1
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?!>)", page)


@pytest.mark.parametrize("path", ["3.0", "..", "%2e%2e", "..%2f..%2fetc", "2.0%00", "2.0/"])
def test_what_is_no_version(client: FlaskClient, path: str) -> None:
    assert client.get(f"/models/{path}").status_code == 404


def test_who_serves(client: FlaskClient, stand_in: StandIn) -> None:
    stand_in.serves = Routing("1.0", ("1.0", "2.0"), "2.0", 20.0)
    page = client.get("/models").text
    assert "Serves by default" in page
    assert "On trial for 20% of the visitors" in page
    assert "The service answers a known image rightly." in page
    stand_in.serves = Routing("2.0", ("1.0", "2.0"))
    assert "Serves on request" in client.get("/models/1.0").text
    stand_in.serves = Routing("2.0", ("2.0",))
    assert "Not serving" in client.get("/models/1.0").text


def test_service_is_down(client: FlaskClient, stand_in: StandIn) -> None:
    stand_in.serves, stand_in.error = None, failure("ServiceUnavailable")
    for path in ("/models", "/models/2.0"):
        response = client.get(path)
        assert response.status_code == 200
        assert "The service does not answer at the moment." in response.text
        assert "Not serving" in response.text


def test_a_version_with_broken_files_is_left_out(client: FlaskClient, models: Path) -> None:
    (models / "1.0" / "metrics.json").write_text("{")
    assert client.get("/models/1.0").status_code == 404
    page = client.get("/models").text
    assert "/models/2.0" in page
    assert "/models/1.0" not in page


def test_no_version_is_finished(client: FlaskClient, app: Flask, tmp_path: Path) -> None:
    app.config["MODELS_DIR"] = tmp_path
    assert "No version is finished yet." in client.get("/models").text


def test_a_version_of_a_laboratory(client: FlaskClient, models: Path) -> None:
    shutil.copytree(models / "2.0", models / "3.0")
    card = json.loads((models / "3.0" / "card.json").read_text())
    card = {key: value for key, value in card.items() if key != "test_accuracy"}
    recall = {"macro_recall": {"value": 0.912, "interval": [0.88, 0.94]}}
    found = {"version": "3.0", "own_cells": {"before": recall, "after": recall}}
    (models / "3.0" / "card.json").write_text(json.dumps(card | {"adapted_from": "2.0"}))
    (models / "3.0" / "metrics.json").write_text(json.dumps(found))
    (models / "3.0" / "served.json").unlink()
    page = client.get("/models/3.0").text
    assert "91.2%" in page
    assert "Trained on from version 2.0" in page
    assert "Confusion" not in page
    assert "3.0" in client.get("/models").text


def test_figures_that_were_measured_anew_are_shown(client: FlaskClient, models: Path) -> None:
    before = client.get("/models/2.0").text
    found = metrics("2.0")
    found["test"]["image_accuracy"]["value"] = 0.1234
    (models / "2.0" / "metrics.json").write_text(json.dumps(found))
    assert "12.3%" not in before
    assert "12.3%" in client.get("/models/2.0").text


def test_the_language_switch_comes_back(client: FlaskClient) -> None:
    page = client.get("/models/1.0").text
    address = re.search(r'href="(/language/pt_BR[^"]+)"', page)
    assert address
    response = client.get(address[1].replace("&amp;", "&"))
    assert response.location == "/models/1.0"
    assert client.get("/language/en?to=models.index").location == "/models"
    assert client.get("/language/en?to=models.version").location == "/"
    assert client.get("/language/en?to=page.healthz").location == "/"


def test_reliability_chart() -> None:
    chart = charts.reliability(
        [
            {"count": 25, "confidence": 0.5, "accuracy": 0.0},
            {"count": 100, "confidence": 1.0, "accuracy": 1.0},
        ]
    )
    (x, y, small), (right, top, large) = chart.dots
    assert (right, top) == (charts.WIDTH - charts.RIGHT, charts.TOP)
    assert (x, y) == ((charts.LEFT + right) / 2, charts.HEIGHT - charts.BOTTOM)
    # A quarter of the answers, half the radius between the smallest and the largest.
    assert (small, large) == ((charts.SMALL + charts.LARGE) / 2, charts.LARGE)


def test_training_chart() -> None:
    rows = [{"train_loss": 1.2, "train_accuracy": 0.0}, {"train_loss": 0.0, "train_accuracy": 1.0}]
    drawn = charts.training({"rows": rows, "steps_a_row": 100})
    [line] = drawn["accuracy"].lines
    first, last = (tuple(map(float, each.split(","))) for each in line.points.split())
    assert first == ((charts.LEFT + charts.WIDTH - charts.RIGHT) / 2, charts.HEIGHT - charts.BOTTOM)
    assert last == (charts.WIDTH - charts.RIGHT, charts.TOP)
    assert [tick.value for tick in drawn["loss"].up] == [0, 0.375, 0.75, 1.125, 1.5]
    assert [tick.value for tick in drawn["loss"].across] == [0, 50, 100, 150, 200]


def test_training_chart_of_several_seeds() -> None:
    row = dict.fromkeys(("train_loss", "train_accuracy", "validation_loss"), 0.5)
    row["validation_accuracy"] = 0.4
    seeds = {"0": [row, row], "1": [row, row]}
    drawn = charts.training({"seeds": seeds, "chosen_seed": 1})
    assert [line.kind for line in drawn["loss"].lines] == ["other", "training", "validation"]
