"""Forms that the edge passes on: TorchServe gets plain bytes, and the handler reads the form."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler

import pytest
from edges import Asker

pytestmark = pytest.mark.live

BODY = b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n1\r\n--b--\r\n'


@pytest.mark.parametrize(
    ("given", "form"),
    [
        ("multipart/form-data; boundary=b", "multipart/form-data; boundary=b"),
        ('Multipart/Form-Data;Boundary="b"', 'Multipart/Form-Data;Boundary="b"'),
        # The handler refuses a form without a boundary.
        ("multipart/form-data", "multipart/form-data"),
        # No form: its bytes are no image.
        ("multipart/mixed; boundary=b", None),
        (f"multipart/form-data; boundary={'b' * 300}", None),
    ],
)
def test_torchserve_gets_plain_bytes(edge: Asker, given: str, form: str | None) -> None:
    assert edge.stand_in
    received = []

    def answer(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        received.append((request.headers["Content-Type"], request.headers["X-Form-Type"], body))
        return 200, b"{}"

    edge.stand_in.answer = answer
    headers = {"Content-Type": given, "X-Form-Type": "multipart/form-data; boundary=c"}
    assert edge.ask(body=BODY, headers=headers).status_code == 200
    assert received == [("application/octet-stream", form, BODY)]
