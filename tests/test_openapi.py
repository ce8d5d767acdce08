"""docs/openapi.yaml is valid and describes the responses of the live edge."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import requests
import schemathesis
import yaml
from edges import Asker
from hypothesis import HealthCheck, Phase, settings

from serving.settings import ROOT
from serving.torchserve.tokens import Tokens

PATH = ROOT / "docs" / "openapi.yaml"
DOCUMENT: dict[str, Any] = yaml.safe_load(PATH.read_text())
SCHEMA = schemathesis.openapi.from_path(PATH)
# No database: the messages of generated bodies would fill the disk.
FEW = settings(
    max_examples=8,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
# The first explanation takes seconds, and a generated image hardly ever shows a cell.
ASKED = SCHEMA.exclude(path_regex="^/explanations")


@pytest.mark.parametrize("name", ["schemas", "responses", "requestBodies", "parameters", "headers"])
def test_every_component_is_used(name: str) -> None:
    text = PATH.read_text()
    for each in DOCUMENT["components"][name]:
        assert f"#/components/{name}/{each}'" in text, each


def test_document_is_valid() -> None:
    """validate() raises if the document is not OpenAPI."""
    SCHEMA.validate()
    assert DOCUMENT["openapi"].startswith("3.1")


@ASKED.parametrize()
@FEW
def test_generated_requests(case: Any, real_edge: Asker) -> None:
    response = case.call(
        base_url=real_edge.edge.url,
        headers={"X-API-Key": real_edge.key},
        session=real_edge.session,
        verify=str(real_edge.edge.certificate),
        timeout=60,
    )
    case.validate_response(
        response,
        checks=[
            schemathesis.checks.not_a_server_error,
            schemathesis.specs.openapi.checks.status_code_conformance,
            schemathesis.specs.openapi.checks.content_type_conformance,
            schemathesis.specs.openapi.checks.response_headers_conformance,
            schemathesis.specs.openapi.checks.response_schema_conformance,
        ],
    )


def test_answers(real_edge: Asker, sample_image: Path) -> None:
    image = sample_image.read_bytes()
    encoded = base64.b64encode(image).decode()
    several = {"instances": [{"b64": encoded}, {"b64": base64.b64encode(image[:999]).decode()}]}
    for kind in ("predictions", "explanations"):
        for version in ("1.0", "3.0"):
            path = f"/{kind}/bloodcells/{version}"
            one = real_edge.ask(path, image)
            some = real_edge.session.post(
                real_edge.edge.url + path,
                json=several,
                headers={"X-API-Key": real_edge.key},
                timeout=60,
            )
            for response in (one, some):
                assert response.status_code == 200
                check_response(kind, response)
            assert some.json()["predictions"][0]["label"] == one.json()["label"]
            assert some.json()["predictions"][1]["code"] == 400


@pytest.mark.parametrize(
    ("expected", "kwargs"),
    [
        (400, {"body": b""}),
        (400, {"body": b"\xff\xd8\xff\xe0damaged"}),
        (401, {"key": None}),
        (403, {"key": "revoked"}),
        (404, {"path": "/predictions/bloodcells/9.9"}),
        (405, {"method": "PUT"}),
        (413, {"body": bytes(12 * 2**20 + 1)}),
        (415, {"body": b"no image"}),
    ],
)
def test_errors(real_edge: Asker, expected: int, kwargs: dict[str, Any]) -> None:
    if kwargs.get("key") == "revoked":
        kwargs = {"key": real_edge.keys.add("revoked")}
        real_edge.keys.revoke("revoked")
    response = real_edge.ask(**{"path": "/predictions/bloodcells/1.0", **kwargs})
    assert response.status_code == expected
    check_response("predictions", response)


def test_examples() -> None:
    for response in DOCUMENT["components"]["responses"].values():
        content = response["content"]["application/json"]
        examples = [each["value"] for each in content.get("examples", {}).values()]
        for example in [*examples, *([content["example"]] if "example" in content else [])]:
            validator(content["schema"]).validate(example)


def test_torchserve_token_is_no_key(real_edge: Asker, sample_image: Path) -> None:
    header = Tokens(real_edge.settings.run_dir).header("inference")
    response = real_edge.ask(body=sample_image.read_bytes(), key=None, headers=header)
    assert response.status_code == 401


def check_response(kind: str, response: requests.Response) -> None:
    """Check a response against the description of its operation and status."""
    operation = DOCUMENT["paths"][f"/{kind}/bloodcells/{{version}}"]["post"]
    reference = operation["responses"][str(response.status_code)]["$ref"]
    found = DOCUMENT["components"]["responses"][reference.rpartition("/")[2]]
    for name in found["headers"]:
        assert response.headers[name]
    validator(found["content"]["application/json"]["schema"]).validate(response.json())


def validator(schema: dict[str, Any]) -> Any:
    return jsonschema_rs.Draft202012Validator({**schema, "components": DOCUMENT["components"]})
