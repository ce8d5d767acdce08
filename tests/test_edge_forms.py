"""Forms that the edge passes on to TorchServe or refuses."""

from __future__ import annotations

import pytest
from edges import Asker, problem_of

pytestmark = pytest.mark.live

PART = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1'
END = b"\r\n--b--"


def problem_or_status(edge: Asker, body: bytes, kind: str) -> object:
    response = edge.ask(body=body, headers={"Content-Type": kind})
    return 200 if response.status_code == 200 else problem_of(response)


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data; boundary=b",
        'multipart/form-data;charset=utf-8;Boundary="b"',
        "multipart/form-data; boundary=b; charset=utf-8",
    ],
)
def test_a_form_without_its_final_boundary_is_refused(edge: Asker, kind: str) -> None:
    assert edge.stand_in
    for cut_off in (b"--b", b"", b"\r\n", b"\r\n--b", b"\r\n--b\r\n", b"\r\n--b-"):
        assert problem_or_status(edge, PART + cut_off, kind) == (400, "BadRequest")
    assert edge.stand_in.requests == []
    for complete in (END, END + b"\r\n", END + b"\r\nepilogue"):
        assert problem_or_status(edge, PART + complete, kind) == 200
    assert len(edge.stand_in.requests) == 3


def test_a_form_without_a_boundary_is_refused(edge: Asker) -> None:
    assert edge.stand_in
    for kind in ("multipart/form-data", "multipart/form-data; boundary="):
        assert problem_or_status(edge, PART + END, kind) == (400, "BadRequest")
    assert edge.stand_in.requests == []
