"""TorchServe's entry point: batches of requests in, an answer for each of them out.

A request can't harm its neighbours: whatever is wrong with it becomes its own error. TorchServe
wants exactly one class here; what it needs stands in the package `handler` beside it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.memory_format import convert_conv2d_weight_memory_format

from handler.network import CLASSES, BloodCellNet
from handler.payload import parse
from handler.preprocessing import HEIGHT, WIDTH, InputError, Pixels, decode_all, to_input

Answer = dict[str, Any]


class BloodCellHandler:
    """Serve one version: `initialize` once for each worker, then `handle` for each batch."""

    def initialize(self, context: Any) -> None:
        """Load the network and run it at every batch size, so that no request waits for that.

        Raises RuntimeError, which TorchServe reports as a failed load, if the weights are not
        the ones that the card names.
        """
        # Java takes every line apart, so none for each batch ("Backend received inference") or for
        # each body that is no JSON after all. But one does tell when `handle` fails.
        logging.getLogger().setLevel(logging.ERROR)
        logging.getLogger("ts.service").setLevel(logging.WARNING)
        properties = context.system_properties
        model_dir = Path(properties["model_dir"])
        torch.set_num_threads(context.model_yaml_config["handler"]["threads"])
        self.model_name = context.manifest["model"]["modelName"]
        self.card = json.loads((model_dir / "card.json").read_text())
        gpu = properties.get("gpu_id")
        self.device = torch.device("cpu" if gpu is None else f"cuda:{gpu}")
        self.network = load_network(model_dir / "weights.pt", self.card).to(self.device)
        self.batch_size = int(properties.get("batch_size") or 1)
        for size in range(1, self.batch_size + 1):
            self._probabilities(torch.zeros(size, 3, HEIGHT, WIDTH))

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[Any]:
        """Answer a batch: one JSON document for each row of data, in its order."""
        headers = [context.get_all_request_header(index) for index in range(len(data))]
        if _is_describe(data, headers):
            return [self.card]
        requests = [_read(row, header) for row, header in zip(data, headers, strict=True)]
        readable = [
            image
            for images, _many in requests
            for image in images
            if not isinstance(image, InputError)
        ]
        answers = iter(self._classify(readable))
        return [
            _respond(
                [image if isinstance(image, InputError) else next(answers) for image in images],
                many,
                index,
                context,
            )
            for index, (images, many) in enumerate(requests)
        ]

    def _classify(self, images: Sequence[Pixels]) -> list[Answer]:
        """Answer images in batches of the sizes that the worker is warm for."""
        answers = []
        for start in range(0, len(images), self.batch_size):
            batch = to_input(images[start : start + self.batch_size])
            rows = self._probabilities(batch)
            answers += [answer(self.model_name, self.card, row) for row in rows]
        return answers

    @torch.inference_mode()
    def _probabilities(self, batch: torch.Tensor) -> list[list[float]]:
        """Map (N, 3, 60, 80) to N lists of four probabilities."""
        probabilities: list[list[float]] = self.network(batch.to(self.device)).softmax(1).tolist()
        return probabilities


def answer(model: str, card: Mapping[str, Any], probabilities: Sequence[float]) -> Answer:
    """Return what is said of an image, from its probabilities in the order of CLASSES."""
    top = max(probabilities)
    return {
        "model": model,
        "version": card["version"],
        "label": CLASSES[probabilities.index(top)],
        "verdict": "confident" if top >= card["confident_from"] else "uncertain",
        "probabilities": {
            name: round(probability, 6)
            for name, probability in zip(CLASSES, probabilities, strict=True)
        },
    }


def load_network(path: Path, card: Mapping[str, Any]) -> BloodCellNet:
    """Load a version's weights as its card describes them; raise RuntimeError if they differ."""
    weights = path.read_bytes()
    if hashlib.sha256(weights).hexdigest() != card["weights_sha256"]:
        raise RuntimeError(f"{path.name} is not the file that card.json names: build it anew.")
    network = BloodCellNet(**card["network"])
    network.load_state_dict(torch.load(BytesIO(weights), map_location="cpu", weights_only=True))
    # Images come channels last, too; the convolutions are faster so.
    return convert_conv2d_weight_memory_format(network.eval(), torch.channels_last)


def _is_describe(data: Sequence[Mapping[str, Any]], headers: Sequence[Mapping[str, Any]]) -> bool:
    # TorchServe asks for the card with this header, alone in its batch and without a body. A caller
    # may send the header, too, but what comes as a prediction bears an `explain`. By an older route
    # (/invocations) it does not: then a caller without an image gets the card, and harms nobody.
    return (
        len(data) == 1
        and not data[0]
        and headers[0].get("describe") == "True"
        and "explain" not in headers[0]
    )


def _read(
    row: Mapping[str, Any], header: Mapping[str, Any]
) -> tuple[list[Pixels | InputError], bool]:
    """Decode the images of one request, and tell whether it wants a list for an answer."""
    try:
        # Set by TorchServe for /explanations, or by the caller: it concerns this request alone.
        if header.get("explain") == "True":
            raise InputError(501, "NotImplemented", "This version gives no explanations.")
        payload = parse(row, header)
    except InputError as error:
        return [error], False
    return decode_all(payload.images), payload.many


def _respond(answers: Sequence[Answer | InputError], many: bool, index: int, context: Any) -> bytes:
    """Encode the answers to one request, and set its status."""
    documents = [vars(answer) if isinstance(answer, InputError) else answer for answer in answers]
    status = HTTPStatus.OK
    if not many and isinstance(answers[0], InputError):
        status = HTTPStatus(answers[0].code)
    context.set_response_status(status, status.phrase, index)
    context.set_response_content_type(index, "application/json")
    return json.dumps({"predictions": documents} if many else documents[0]).encode()
