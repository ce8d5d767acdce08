"""The pages about the model show the measured figures and the serving versions."""

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

from serving.deployment.routing import Routing


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture
def models(app: Flask, tmp_path: Path) -> Path:
    """Let the page read a copy of the models, and return its folder."""
    for version in VERSIONS:
        (tmp_path / version).mkdir()
        for path in (ROOT / "models" / version).glob("*"):
            if path.suffix in (".json", ".onnx"):
                shutil.copy(path, tmp_path / version)
    app.config["MODELS_DIR"] = tmp_path
    return tmp_path


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def metrics(version: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / "models" / version / "metrics.json").read_text())
    return document


def test_all_versions_newest_first(client: FlaskClient) -> None:
    page = client.get("/models").text
    assert re.findall(r'href="/models/([^"]+)"', page) == sorted(CARDS, reverse=True)
    for version in VERSIONS:
        assert percent(CARDS[version]["test_accuracy"]["value"]) in page
    assert page.count("<h1") == 1


def test_versions_are_compared_in_each_laboratory(client: FlaskClient) -> None:
    """Not by a mean: not all are measured in the same laboratories."""
    page = client.get("/models").text
    titles = {"photographs": "Photographs", "pbc": "PBC", "raabin": "Raabin-WBC", "rvpbs": "RV-PBS"}
    for version in VERSIONS:
        parts = metrics(version)["left_out"]["laboratories"]
        recalls = {titles[name]: part["macro_recall"]["value"] for name, part in parts.items()}
        shown = ", ".join(f"{title} {percent(recall)}" for title, recall in recalls.items())
        assert f"<dd>{shown}</dd>" in page


@pytest.mark.parametrize("version", VERSIONS)
def test_page_shows_the_measured_figures(client: FlaskClient, version: str) -> None:
    page = client.get(f"/models/{version}").text
    found = metrics(version)
    figures = [
        found["test"]["image_accuracy"],
        found["test"]["photograph_accuracy"],
        found["test_where_confident"]["image_accuracy"],
        found["left_out"]["macro_recall"],
        *(part["macro_recall"] for part in found["left_out"]["laboratories"].values()),
        *(each[what] for each in found["test"]["classes"].values() for what in ("precision", "f1")),
    ]
    # Only 1.0 is cross-validated.
    figures += [part["macro_recall"] for part in [found.get("cross_validation")] if part]
    shares = [figure["value"] for figure in figures]
    shares += [bound for figure in figures for bound in figure["interval"]]
    shares += [row["recall"] for row in found["seed_project"]["classes"].values()]
    shares += [each["accuracy"] for each in found["calibration"]["after"]["bins"]]
    for share in shares:
        assert percent(share) in page
    for row in found["test"]["confusion"]:
        for count in row:
            assert f">{count:,}<" in page
    assert CARDS[version]["sha256"]["network.onnx"] in page
    assert page.count("<h1") == 1
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?!>)", page)


def test_page_in_portuguese_writes_numbers_the_portuguese_way(client: FlaskClient) -> None:
    page = client.get(f"/models/{VERSIONS[0]}", headers={"Accept-Language": "pt-BR"}).text
    accuracy = metrics(VERSIONS[0])["test"]["image_accuracy"]["value"]
    assert percent(accuracy).replace(".", ",") in page


@pytest.mark.parametrize("version", VERSIONS)
def test_plots_are_those_of_the_model_folder(client: FlaskClient, version: str) -> None:
    page = client.get(f"/models/{version}").text
    shown = re.findall(r'<img class="plot" src="([^"]+)" alt="[^"]+"', page)
    assert len(shown) == 2
    for address in shown:
        with client.get(address) as response:
            assert response.mimetype == "image/png"
            assert response.data == (ROOT / address.lstrip("/")).read_bytes()
    assert client.get(f"/models/{version}/plots/other.png").status_code == 404


@pytest.mark.parametrize(
    "path", ["9.9", "..", "%2e%2e", "..%2f..%2fetc", "3.0%00", "3.0/", "9.9/plots/training.png"]
)
def test_unknown_version(client: FlaskClient, path: str) -> None:
    assert client.get(f"/models/{path}").status_code == 404


def test_serving_versions(client: FlaskClient, stand_in: StandIn) -> None:
    stand_in.serves = Routing("1.0", ("1.0", "3.0"), "3.0", 20.0)
    page = client.get("/models").text
    assert "Default version" in page
    assert "Canary for 20% of the visitors" in page
    assert "The service is working." in page
    stand_in.serves = Routing("3.0", ("1.0", "3.0"))
    assert "Available on request" in client.get("/models/1.0").text
    stand_in.serves = Routing("3.0", ("3.0",))
    assert "Not available" in client.get("/models/1.0").text


@pytest.mark.parametrize("path", ["/models", f"/models/{VERSIONS[0]}"])
def test_service_is_down(client: FlaskClient, stand_in: StandIn, path: str) -> None:
    stand_in.serves, stand_in.error = None, failure("ServiceUnavailable")
    response = client.get(path)
    assert response.status_code == 200
    assert "The service is not available at the moment." in response.text
    assert "Not available" in response.text


@pytest.mark.parametrize(("name", "content"), [("metrics.json", "{"), ("card.json", "{}")])
def test_a_version_with_broken_files_is_left_out(
    client: FlaskClient, models: Path, name: str, content: str
) -> None:
    (models / "1.0" / name).write_text(content)
    assert client.get("/models/1.0").status_code == 404
    assert re.findall(r'href="/models/([^"]+)"', client.get("/models").text) == ["3.0"]


def test_no_version_is_finished(client: FlaskClient, app: Flask, tmp_path: Path) -> None:
    app.config["MODELS_DIR"] = tmp_path
    assert "No version is available yet." in client.get("/models").text


def test_a_version_of_a_laboratory(client: FlaskClient, models: Path) -> None:
    folder = shutil.copytree(models / "3.0", models / "4.0")
    card = json.loads((folder / "card.json").read_text()) | {"adapted_from": "3.0"}
    card["classes"] = ["NEUTROPHIL", "BASOPHIL", "HAIRY_CELL"]
    del card["test_accuracy"]
    recall = {"macro_recall": {"value": 0.912, "interval": [0.88, 0.94]}}
    found = {"version": "4.0", "own_cells": {"before": recall, "after": recall}}
    (folder / "card.json").write_text(json.dumps(card))
    (folder / "metrics.json").write_text(json.dumps(found))
    (folder / "served.json").unlink(missing_ok=True)
    page = client.get("/models/4.0").text
    assert "91.2%" in page
    assert "Adapted from version 3.0" in page
    assert "Neutrophil, Basophil, HAIRY_CELL" in page
    assert "Confusion" not in page
    assert 'class="plot"' not in page
    assert "4.0" in client.get("/models").text


def test_no_answer_on_test_is_confident(client: FlaskClient, models: Path) -> None:
    assert "TEST, confident answers" in client.get("/models/3.0").text
    found = metrics("3.0") | {"test_where_confident": None}
    (models / "3.0" / "metrics.json").write_text(json.dumps(found))
    page = client.get("/models/3.0")
    assert page.status_code == 200
    assert "TEST, confident answers" not in page.text


def test_new_figures_are_shown_without_a_restart(client: FlaskClient, models: Path) -> None:
    before = client.get("/models/3.0").text
    found = metrics("3.0")
    found["test"]["image_accuracy"]["value"] = 0.1234
    (models / "3.0" / "metrics.json").write_text(json.dumps(found))
    assert "12.3%" not in before
    assert "12.3%" in client.get("/models/3.0").text


def test_language_switch_returns_to_the_page(client: FlaskClient) -> None:
    address = re.search(r'href="(/language/pt_BR[^"]+)"', client.get("/models/1.0").text)
    assert address
    assert client.get(address[1].replace("&amp;", "&")).location == "/models/1.0"
    for to, location in (
        ("models.index", "/models"),
        ("models.version", "/"),
        ("page.healthz", "/"),
    ):
        assert client.get(f"/language/en?to={to}").location == location
