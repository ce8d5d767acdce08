"""docs/openapi.yaml is valid and describes the responses of the live edge."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import requests
import schemathesis
import yaml
from edges import Asker, need_nginx
from hypothesis import HealthCheck, Phase, settings

from serving.settings import ROOT
from serving.torchserve.tokens import Tokens
from testing.service import Service, run_edge

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


@pytest.fixture(scope="module")
def asker(service: Service) -> Iterator[Asker]:
    """Start an edge in front of the real service."""
    need_nginx()
    outside = Asker(run_edge(service.settings, EDGE_RATE="5000"), service.settings)
    yield outside
    outside.close()


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
def test_generated_requests(case: Any, asker: Asker) -> None:
    response = case.call(
        base_url=asker.edge.url,
        headers={"X-API-Key": asker.key},
        session=asker.session,
        verify=str(asker.edge.certificate),
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


def test_answers(asker: Asker, sample_image: Path) -> None:
    image = sample_image.read_bytes()
    encoded = base64.b64encode(image).decode()
    several = {"instances": [{"b64": encoded}, {"b64": base64.b64encode(image[:999]).decode()}]}
    for kind in ("predictions", "explanations"):
        for version in ("1.0", "2.0"):
            path = f"/{kind}/bloodcells/{version}"
            one = asker.ask(path, image)
            some = asker.session.post(
                asker.edge.url + path, json=several, headers={"X-API-Key": asker.key}, timeout=60
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
def test_errors(asker: Asker, expected: int, kwargs: dict[str, Any]) -> None:
    if kwargs.get("key") == "revoked":
        kwargs = {"key": asker.keys.add("revoked")}
        asker.keys.revoke("revoked")
    response = asker.ask(**{"path": "/predictions/bloodcells/1.0", **kwargs})
    assert response.status_code == expected
    check_response("predictions", response)


def test_examples() -> None:
    for response in DOCUMENT["components"]["responses"].values():
        content = response["content"]["application/json"]
        examples = [each["value"] for each in content.get("examples", {}).values()]
        for example in [*examples, *([content["example"]] if "example" in content else [])]:
            validator(content["schema"]).validate(example)


def test_torchserve_token_is_no_key(asker: Asker, sample_image: Path) -> None:
    header = Tokens(asker.settings.run_dir).header("inference")
    response = asker.ask(body=sample_image.read_bytes(), key=None, headers=header)
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
