"""Clients of the Open Inference Protocol, unchanged, against the edge of the real service.

kserve needs older packages than this project. KSERVE_PYTHON names the Python of an environment that
has it; without one, its test is skipped.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from edges import Asker

from serving.settings import ROOT

PAGE = (ROOT / "docs" / "inference-protocol.md").read_text()
SAMPLES = [ROOT / "serving" / "samples" / f"{name}.png" for name in ("neutrophil", "monocyte")]
LABELS = ["NEUTROPHIL", "MONOCYTE"]


def documented(heading: str) -> list[str]:
    """Return the programs of a section of the page."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"```(?:sh|python)\n(.+?)```", section, re.DOTALL)


def run(edge: Asker, program: str, *command: str) -> str:
    """Run a documented program against the edge, and return what it prints."""
    own = program.replace("127.0.0.1:8443", edge.edge.url.removeprefix("https://"))
    own = own.replace(".run/edge/certificate.pem", str(edge.edge.certificate))
    assert own.count(str(edge.edge.certificate)) == 1
    environment = os.environ | {"KEY": edge.key}
    done = subprocess.run(
        [*command, own], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl(real_edge: Asker) -> None:
    raw, in_json = documented("curl")
    for program, names in (
        (raw, ["label", "verdict", "probabilities", "answer"]),
        (in_json, ["label", "probabilities"]),
    ):
        document = json.loads(run(real_edge, program, "bash", "-c"))
        assert [each["name"] for each in document["outputs"]] == names
        assert document["outputs"][0]["data"] == LABELS[:1]


def test_the_documented_tritonclient(real_edge: Asker) -> None:
    pytest.importorskip("tritonclient.http")
    [program] = documented("tritonclient")
    assert "[b'NEUTROPHIL' b'MONOCYTE']" in run(real_edge, program, sys.executable, "-c")


def test_the_documented_kserve(real_edge: Asker) -> None:
    python = os.environ.get("KSERVE_PYTHON")
    if not python:
        pytest.skip("KSERVE_PYTHON is not set")
    [program] = documented("kserve")
    assert "label ['NEUTROPHIL']" in run(real_edge, program, python, "-c")


class Triton:
    """A tritonclient with the key of an edge."""

    def __init__(self, edge: Asker) -> None:
        self.module = pytest.importorskip("tritonclient.http")
        options = {"ca_certs": str(edge.edge.certificate)}
        url = edge.edge.url.removeprefix("https://")
        self.client = self.module.InferenceServerClient(url, ssl=True, ssl_options=options)
        self.key = edge.key

    @property
    def headers(self) -> dict[str, str]:
        return {"X-API-Key": self.key}

    def infer(self, *images: bytes, binary: bool = True, version: str = "", **options: Any) -> Any:
        sent = images if binary else [base64.b64encode(image) for image in images]
        tensor = self.module.InferInput("image", [len(sent)], "BYTES")
        tensor.set_data_from_numpy(np.array(sent, dtype=object), binary_data=binary)
        options = {"headers": self.headers, **options}
        return self.client.infer("bloodcells", [tensor], version, **options)

    def refusal(self, *images: bytes, **options: Any) -> tuple[str, str]:
        with pytest.raises(self.module.InferenceServerException) as error:
            self.infer(*images, **options)
        return error.value.status(), error.value.message()


@pytest.fixture(scope="module")
def triton(real_edge: Asker) -> Triton:
    return Triton(real_edge)


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return [path.read_bytes() for path in SAMPLES]


def test_health_and_metadata(triton: Triton) -> None:
    client, key = triton.client, triton.headers
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("bloodcells", headers=key)
    assert client.is_model_ready("bloodcells", "1.0", headers=key)
    assert not client.is_model_ready("bloodcells", "9.9", headers=key)
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    for version in ("1.0", "3.0"):
        found = client.get_model_metadata("bloodcells", version, headers=key)
        card = json.loads((ROOT / "models" / version / "card.json").read_text())
        assert found["parameters"]["classes"] == ",".join(card["classes"])
        assert found["versions"] == ["1.0", "3.0"]


@pytest.mark.parametrize("version", ["1.0", "3.0"])
@pytest.mark.parametrize("binary", [True, False])
def test_answers_are_those_of_the_rest_api(
    triton: Triton, real_edge: Asker, images: list[bytes], binary: bool, version: str
) -> None:
    path = f"/predictions/bloodcells/{version}"
    expected = [real_edge.ask(path, image).json() for image in images]
    names = ("label", "verdict", "probabilities", "answer")
    outputs = [triton.module.InferRequestedOutput(name, binary_data=not binary) for name in names]
    for result in (
        triton.infer(*images, binary=binary, version=version, request_id="mine"),
        triton.infer(*images, binary=binary, version=version, outputs=outputs, request_id="mine"),
    ):
        response = result.get_response()
        assert (response["id"], response["model_version"]) == ("mine", version)
        assert [each["name"] for each in response["outputs"]] == [*names]
        for answer, other in zip(result.as_numpy("answer"), expected, strict=True):
            found = json.loads(answer)
            assert found.keys() == other.keys()
            assert (found["label"], found["verdict"]) == (other["label"], other["verdict"])
        # Answers differ a little with the batch.
        shares = [[*each["probabilities"].values()] for each in expected]
        np.testing.assert_allclose(result.as_numpy("probabilities"), shares, atol=1e-3)
        # Text in JSON, bytes as binary data.
        labels = result.as_numpy("label").astype(str).tolist()
        assert labels == [each["label"] for each in expected]


def test_a_damaged_image_does_not_cost_the_others(triton: Triton, images: list[bytes]) -> None:
    result = triton.infer(images[0], images[0][:999], b"no image")
    assert result.as_numpy("label").tolist() == [b"NEUTROPHIL", b"", b""]
    assert result.as_numpy("verdict").tolist() == [b"confident", b"error", b"error"]
    assert not result.as_numpy("probabilities")[1:].any()
    codes = [json.loads(each).get("code") for each in result.as_numpy("answer")]
    assert codes == [None, 400, 415]


def test_errors(triton: Triton, images: list[bytes]) -> None:
    image = images[0]
    for status, sent, options in (
        ("415", [b"no image"], {}),
        ("400", [b""], {}),
        ("413", 129 * [b"i"], {}),
        ("404", [image], {"version": "9.9"}),
        ("401", [image], {"headers": {}}),
        ("415", [image], {"request_compression_algorithm": "gzip"}),
        ("400", [image], {"outputs": [triton.module.InferRequestedOutput("x")]}),
        ("400", [image], {"outputs": [triton.module.InferRequestedOutput("label", class_count=1)]}),
    ):
        found, message = triton.refusal(*sent, **options)
        assert found == status
        # The client could read the error.
        assert "exception occurred" not in message
