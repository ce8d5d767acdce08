"""Hostile uploads: the decoder and the service answer or refuse them, and keep running."""

from __future__ import annotations

from collections import Counter

import pytest

from handler.bounds import FIELD, InputError
from handler.preprocessing import DecodedImage, decode, within_field
from serving.client import ManagementClient
from serving.settings import MODEL
from testing import connections, hostile
from testing.connections import Call
from testing.hostile import BYTES, Upload
from testing.service import Service

UPLOADS = hostile.collection()


def status(body: bytes) -> int:
    """Return the status of the decoder's answer; other exceptions than its own are raised."""
    try:
        picture = decode(body, within_field)
    except InputError as error:
        return error.code
    assert isinstance(picture, DecodedImage)
    assert picture.pixels.shape[2] == 3
    assert max(picture.pixels.shape) <= FIELD
    return 200


def test_the_decoder_answers_or_refuses() -> None:
    bodies = [upload for upload in UPLOADS if upload.content_type == BYTES]
    assert len(bodies) > 30
    assert [each.name for each in bodies if status(each.body) not in each.allowed] == []
    assert {status(body) for body in hostile.seeds().values()} == {200}


def test_the_decoder_survives_images_cut_anywhere() -> None:
    for kind in ("JPEG", "PNG", "TIFF, LZW", "WebP", "BMP"):
        body = hostile.seeds()[kind]
        seen = Counter(status(body[:length]) for length in range(0, len(body), len(body) // 150))
        assert set(seen) <= set(hostile.EITHER)
        assert seen[400] > 100


@pytest.mark.live
def test_the_service_refuses_them_all_and_no_worker_dies(service: Service) -> None:
    client = ManagementClient(service.settings)

    def workers() -> dict[str, list[int]]:
        return {
            version: sorted(worker["pid"] for worker in described["workers"])
            for version, described in client.versions().items()
        }

    def ask(upload: Upload, version: str) -> str:
        headers = {"Content-Type": upload.content_type} | client.tokens.header("inference")
        url = f"{service.settings.inference_url}/predictions/{MODEL}/{version}"
        return connections.once(Call(url, upload.body, headers))

    before = workers()
    uploads = [*UPLOADS, *hostile.mutations(150, 5)]
    wrong = {
        f"{upload.name}, {version}": said
        for version in before
        for upload in uploads
        if (said := ask(upload, version)) not in map(str, upload.allowed)
    }
    assert wrong == {}
    assert workers() == before
    good = Upload("good", hostile.small("JPEG"))
    assert {ask(good, version) for version in before} == {"200"}
    client.close()
