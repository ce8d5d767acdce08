"""The requests of the page's script, in front of a stand-in for the service."""

import json
import re
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from page_stand_in import HEAT_MAP, SECRET, StandIn, encoded, failure, picture, token
from PIL import ExifTags, Image
from werkzeug.datastructures import FileStorage
from werkzeug.test import TestResponse

from frontend import create_app, errors, images, limits, samples, texts
from serving.client import INPUT_ERRORS
from serving.errors import WorkerDied
from serving.settings import ROOT
from training.protocol import FIELD_CLASSES

SHARES = {"EOSINOPHIL": 0.1, "LYMPHOCYTE": 0.2, "MONOCYTE": 0.3, "NEUTROPHIL": 0.4}
UNCERTAIN = {
    "box": [10, 20, 30.5, 44],
    "label": "NEUTROPHIL",
    "verdict": "uncertain",
    "probabilities": SHARES,
}
REJECTED = UNCERTAIN | {"box": [50, 5, 70, 25], "label": None, "verdict": "rejected"}


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


def ask(
    client: FlaskClient, image: bytes | None, what: str = "predictions", **fields: str
) -> TestResponse:
    """Send a request as the script does, with the token in a header."""
    data: dict[str, Any] = dict(fields)
    if image is not None:
        data["image"] = FileStorage(BytesIO(image), filename="cell")
    headers = {"X-CSRFToken": token(client.get("/").text)}
    return client.post(f"/api/{what}", headers=headers, **encoded(data))


def test_one_cell(client: FlaskClient, stand_in: StandIn) -> None:
    response = ask(client, picture())
    assert response.headers["X-Model-Version"] == "1.0"
    answer = {key: stand_in.answer[key] for key in ("label", "verdict", "probabilities")}
    assert response.json == {"version": "1.0", "cells": [answer | {"box": None, "found": True}]}
    assert stand_in.images == [picture()]


def test_cells_of_a_field(client: FlaskClient, stand_in: StandIn) -> None:
    stand_in.answer["cells"] = [UNCERTAIN, REJECTED]
    answer = ask(client, picture()).json
    assert answer
    assert answer["cells"] == [cell | {"found": True} for cell in (UNCERTAIN, REJECTED)]


def test_embeddings_on_request(client: FlaskClient, stand_in: StandIn) -> None:
    """Packed as 32-bit floats, and asked of the versions that have a recipe for a head."""
    stand_in.answer["cells"] = [UNCERTAIN | {"embedding": [1, -2.0]}, UNCERTAIN]
    answer = ask(client, picture(), embedding="true").json
    assert answer
    assert answer["cells"][0]["embedding"] == "AACAPwAAAMA="
    assert "embedding" not in answer["cells"][1]
    ask(client, picture())
    assert [list(each) for each in stand_in.embeddings] == [["3.0"], []]


def test_recipes_are_those_of_the_versions(client: FlaskClient) -> None:
    page = client.get("/").text
    match = re.search(r'<script type="application/json" id="recipes">(.*)</script>', page)
    assert match
    card, few_cells = (
        json.loads((ROOT / "models" / "3.0" / f"{name}.json").read_text())
        for name in ("card", "few_cells")
    )
    confident = card["thresholds"]["confident"]
    assert json.loads(match[1]) == {"3.0": few_cells["recipe"] | {"confident": confident}}


def test_a_field_without_cells_is_one_rejected_answer(
    client: FlaskClient, stand_in: StandIn
) -> None:
    stand_in.answer |= {"cells": [], "label": None, "verdict": "rejected"}
    answer = ask(client, picture()).json
    assert answer
    [cell] = answer["cells"]
    assert (cell["label"], cell["box"], cell["found"]) == (None, None, False)
    sent = {"csrf_token": token(client.get("/").text), "sample": "red-cells-1.jpg"}
    page = client.post("/", data=sent).text
    assert str(texts.NOTHING) in page
    assert 'class="percent"' not in page


def test_a_tiff_comes_with_a_picture(client: FlaskClient) -> None:
    answer = ask(client, picture("TIFF", (1600, 1200))).json
    assert answer
    assert answer["picture"].startswith("data:image/png;base64,")
    assert answer["size"] == [1600, 1200]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_upright_size(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = BytesIO()
    Image.new("RGB", (80, 60)).save(file, kind, exif=exif)
    assert images.shown(file.getvalue()).size == ((60, 80) if orientation > 4 else (80, 60))
    assert images.shown(file.getvalue()[:20]).size is None


@pytest.mark.parametrize(
    "broken",
    [
        {"verdict": "sure"},
        {"label": "PLATELET"},
        {"label": None},
        {"probabilities": None},
        {"probabilities": {"NEUTROPHIL": "much"}},
        {"probabilities": SHARES | {"NEUTROPHIL": 1.5}},
        {"probabilities": SHARES | {"NEUTROPHIL": float("nan")}},
        {"probabilities": {"PLATELET": 1.0}},
        REJECTED | {"probabilities": {}},
        {"box": [1, 2, 3]},
        {"box": [1, 2, 3, float("nan")]},
        *({"embedding": each} for each in ([], ["a"], [float("nan")], [1e99], "text", 3)),
    ],
)
@pytest.mark.parametrize("cells", [False, True])
def test_answer_out_of_contract(
    client: FlaskClient, stand_in: StandIn, broken: dict[str, Any], cells: bool
) -> None:
    stand_in.answer |= {"cells": [UNCERTAIN | broken]} if cells else broken
    response = ask(client, picture())
    assert (response.status_code, response.json) == (502, {"type": "ServiceError"})


def test_a_chosen_version_answers(client: FlaskClient, stand_in: StandIn) -> None:
    ask(client, picture(), version="3.0")
    ask(client, picture())
    assert stand_in.versions == ["3.0", None]
    assert stand_in.clients[0] == stand_in.clients[1]
    assert ask(client, picture(), version="../x").status_code == 409
    assert len(stand_in.images) == 2


def test_explanation(client: FlaskClient, stand_in: StandIn) -> None:
    response = ask(client, picture(), "explanations", version="1.0")
    assert response.json == {"heat_map": f"data:image/png;base64,{HEAT_MAP}"}
    assert stand_in.versions == ["1.0"]
    # Only the version that gave the answer can explain it.
    assert ask(client, picture(), "explanations").json == {"type": "NotServed"}


@pytest.mark.parametrize("raised", [*sorted(errors.UPLOAD), "Novelty"])
@pytest.mark.parametrize("what", ["predictions", "explanations"])
def test_service_errors(client: FlaskClient, stand_in: StandIn, raised: str, what: str) -> None:
    kind = raised if raised in errors.UPLOAD else "ServiceError"
    stand_in.error = failure(raised)
    response = ask(client, picture(), what, version="1.0")
    assert response.json == {"type": kind}
    assert response.status_code == errors.UPLOAD[kind].status
    assert SECRET not in response.text
    assert ("Retry-After" in response.headers) == (response.status_code in (429, 503))


@pytest.mark.parametrize("what", ["predictions", "explanations"])
def test_an_image_that_ends_its_worker_is_not_sent_again(
    client: FlaskClient, stand_in: StandIn, what: str
) -> None:
    stand_in.error = WorkerDied(SECRET)
    response = ask(client, picture(), what, version="1.0")
    # The script sends an image again after 429, 502 and 503: tests/js/retry.test.mjs.
    assert (response.status_code, response.json) == (500, {"type": "WorkerDied"})


def test_every_error_of_the_handler_has_a_message() -> None:
    assert set(INPUT_ERRORS) <= set(errors.UPLOAD)


# The other bad uploads: test_frontend.
def test_too_large_a_form(client: FlaskClient, stand_in: StandIn) -> None:
    response = ask(client, bytes(9 * 1024**2))
    assert (response.status_code, response.json) == (413, {"type": "ImageTooLarge"})
    assert not stand_in.images


PART = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'


@pytest.mark.parametrize(
    "end",
    [
        b"",
        b"\r\n",
        b"\r\n--b",
        b"\r\n--b\r\n",
        b"\r\n--b-",
        b"\r\n--b\r\nX: y\r\n\r\n\r\n--b--\r\n",
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/predictions", "/api/explanations"])
def test_a_form_that_is_cut_off_or_malformed(
    client: FlaskClient, stand_in: StandIn, path: str, end: bytes
) -> None:
    headers = {"X-CSRFToken": token(client.get("/").text)}
    kind = "multipart/form-data; boundary=b"
    response = client.post(path, data=PART + picture() + end, content_type=kind, headers=headers)
    assert response.status_code == 400
    if path == "/":
        assert str(errors.UPLOAD["IncompleteUpload"].title) in response.text
    else:
        assert response.json == {"type": "IncompleteUpload"}
    assert not stand_in.images
    complete = PART + picture() + b"\r\n--b--\r\n"
    client.post(path, data=complete, content_type=kind, headers=headers)
    assert bool(stand_in.images) == (path != "/api/explanations")


@pytest.mark.parametrize("headers", [{}, {"X-CSRFToken": "forged"}])
def test_csrf(client: FlaskClient, stand_in: StandIn, headers: dict[str, str]) -> None:
    client.get("/")
    data = {"image": (BytesIO(picture()), "cell")}
    response = client.post("/api/predictions", data=data, headers=headers)
    assert (response.status_code, response.json) == (400, {"type": "ExpiredForm"})
    assert not stand_in.images


def test_rate_limit(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    # The worst moment: just after a whole second, the window rounds up the most.
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.01)
    app = create_app({"CLIENT": stand_in, "RATE_LIMIT": "2 per minute"})
    client = app.test_client()
    assert [ask(client, picture()).status_code for _ in range(3)] == [200, 200, 429]
    refused = ask(client, picture())
    assert refused.json == {"type": "TooManyRequests"}
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    # A form gets a page. Viewing pages and other addresses are not limited.
    assert str(errors.UPLOAD["TooManyRequests"].title) in client.post("/", data={}).text
    assert client.get("/").status_code == 200
    other = client.post("/", data={}, environ_base={"REMOTE_ADDR": "127.0.0.2"})
    assert other.status_code == 400
    assert len(stand_in.images) == 2


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::2:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        # Of a direct client.
        ("a" * 9000, "b" * 9000, True),
    ],
)
def test_which_addresses_share_a_limit(app: Flask, one: str, other: str, same: bool) -> None:
    found = []
    for each in (one, other):
        with app.test_request_context(headers={"X-Real-IP": each}):
            found.append(limits.address())
    assert (found[0] == found[1]) == same
    assert max(map(len, found)) < 50


def test_the_script_has_a_text_for_each_error(app: Flask) -> None:
    with app.test_request_context():
        found = texts.for_script()
    assert set(found["problems"]) == set(errors.UPLOAD)
    assert "8 MB" in found["problems"]["ImageTooLarge"]["advice"]
    assert "%(" not in str(found)


def test_drawn_samples(client: FlaskClient, stand_in: StandIn) -> None:
    drawn = samples.drawn()
    assert {sample.label for sample in drawn} == {*FIELD_CLASSES, None}
    page = client.get("/").text
    for sample in drawn:
        assert f'data-address="/static/samples/{sample.name}"' in page
    # Without the script, the button sends the name alone.
    sent = {"sample": drawn[0].name, "csrf_token": token(page)}
    assert client.post("/", data=sent).status_code == 200
    assert stand_in.images == [drawn[0].path.read_bytes()]
    assert client.post("/", data=sent | {"sample": "../views.py"}).status_code == 400


@pytest.fixture
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an empty TEST folder that the page takes for the data set's."""
    folder = tmp_path / "dataset2-master" / "dataset2-master" / "images" / "TEST"
    folder.mkdir(parents=True)
    monkeypatch.setenv("BLOOD_CELLS_DATA", str(tmp_path))
    monkeypatch.setattr(samples, "IMAGES", tmp_path / "images.csv")
    samples.photographs.cache_clear()
    yield folder
    samples.photographs.cache_clear()


def test_samples_of_the_data_set(client: FlaskClient, data_set: Path) -> None:
    samples.IMAGES.write_text(
        "split,label,file,photograph\n"
        "TRAIN,EOSINOPHIL,_0_1.jpeg,A\n"
        "TEST,EOSINOPHIL,_0_5239.jpeg,B\n"
        "TEST,EOSINOPHIL,_1_9999.jpeg,B\n"
        "TEST,NEUTROPHIL,_0_1966.jpeg,C\n"
        "TEST,NEUTROPHIL,missing.jpeg,D\n"
    )
    for label, file in (("EOSINOPHIL", "_0_5239.jpeg"), ("NEUTROPHIL", "_0_1966.jpeg")):
        (data_set / label).mkdir()
        (data_set / label / file).write_bytes(picture("JPEG"))
    names = [sample.name for sample in samples.photographs()]
    assert names == ["EOSINOPHIL-_0_5239.jpeg", "NEUTROPHIL-_0_1966.jpeg"]
    with client.get(f"/samples/{names[0]}") as response:
        assert (response.mimetype, response.data) == ("image/jpeg", picture("JPEG"))
    assert f'value="{names[1]}"' in client.get("/").text
    for wrong in ("EOSINOPHIL-_0_1.jpeg", "..%2f..%2fimages.csv", "images.csv"):
        assert client.get(f"/samples/{wrong}").status_code == 404


def test_without_the_data_set_only_drawings_are_offered(
    client: FlaskClient, data_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BLOOD_CELLS_DATA")
    assert "Photographs" not in client.get("/").text
