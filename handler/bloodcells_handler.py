"""TorchServe's entry point: a batch of requests in, one JSON answer for each out.

TorchServe expects exactly one class in this file; the rest is in the package `handler`.
An error in one request never affects the others of its batch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from itertools import chain, islice
from pathlib import Path
from typing import Any

import orjson

from handler import inference_protocol, metrics
from handler.batch import EXPLAINED, PART, Request, Turn, decoded_images, split
from handler.bounds import InputError
from handler.engine import CURE
from handler.explanation import to_png
from handler.payload import parse
from handler.pipelines import load
from handler.preprocessing import open_all
from handler.verdict import Answer, Prediction, answer


class BloodCellHandler:
    """Serve one version: TorchServe calls `initialize` once a worker, then `handle` for a batch."""

    def initialize(self, context: Any) -> None:
        """Load the version and warm it up at every batch size.

        Raises RuntimeError, which TorchServe reports as a failed load, if a file's hash differs
        from the card's, or if the version is configured for a GPU and there is none.
        """
        # Java parses every line that a worker logs. TorchServe's own worker program logs each
        # batch, and each body that is not JSON.
        logging.getLogger().setLevel(logging.ERROR)
        logging.getLogger("ts.service").setLevel(logging.WARNING)
        properties = context.system_properties
        model_dir = Path(properties["model_dir"])
        self.model_name = context.manifest["model"]["modelName"]
        self.card = json.loads((model_dir / "card.json").read_text())
        gpu = properties.get("gpu_id")
        if context.model_yaml_config.get("deviceType") == "gpu" and gpu is None:
            # TorchServe would silently fall back to the CPU.
            raise RuntimeError(f"deviceType is gpu, but TorchServe finds none. {CURE}")
        self.pipeline = load(
            model_dir,
            self.card,
            batch_size=int(properties.get("batch_size") or 1),
            threads=context.model_yaml_config["handler"]["threads"],
            gpu=gpu,
        )
        self.pipeline.warm_up()
        # In the folder of all archives, so that all workers share it.
        self.turn = Turn(model_dir.parent / "expensive.lock")
        self.metrics = metrics.start(self.card["version"], self.card["classes"])

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[Any]:
        """Answer a batch: one JSON document for each row of data, in order."""
        for index in range(len(data)):
            context.set_response_header(index, "X-Model-Version", self.card["version"])
        headers = [context.get_all_request_header(index) for index in range(len(data))]
        if _is_describe(data, headers):
            return [self.card]
        decoding = metrics.Stopwatch()
        with decoding:
            requests = [self._read(*each) for each in zip(data, headers, strict=True)]
        try:
            split(requests, self.turn)
            self._predict(requests, decoding)
            self._explain(requests, decoding)
        finally:
            self.turn.give()
        self.metrics.decoded(len(data), decoding.seconds)
        self.metrics.answered(
            chain.from_iterable(
                request.images
                for request, header in zip(requests, headers, strict=True)
                # Health checks send this header; they are not counted.
                if header.get("X-Known-Image") != "true"
            )
        )
        return [_respond(request, index, context) for index, request in enumerate(requests)]

    def _read(self, row: Mapping[str, Any], header: Mapping[str, Any]) -> Request:
        # TorchServe sets this header for /explanations; a client may set it too.
        explain = header.get("explain") == "True"
        protocol, encode = header.get(inference_protocol.PROTOCOL), None
        if protocol == inference_protocol.METADATA:
            document = inference_protocol.metadata(self.model_name, self.card)
            return Request([], True, False, encode=lambda _: (document, None))
        try:
            if protocol == inference_protocol.INFER:
                length = header.get(inference_protocol.LENGTH)
                payload, wanted = inference_protocol.parse(row.get("body"), length)
                encode = partial(inference_protocol.encode, self.model_name, self.card, wanted)
            else:
                payload = parse(row, header)
            if payload.embeddings and not self.card.get("embedding"):
                raise InputError(400, "BadRequest", "This version has no embeddings.")
        except InputError as error:
            return Request([error], False, explain)
        images = open_all(payload.images)
        return Request(images, payload.many, explain, payload.embeddings, encode)

    def _predict(self, requests: Sequence[Request], decoding: metrics.Stopwatch) -> None:
        """Answer the images of predictions."""
        images = decoded_images(requests, False, self.pipeline.fit)
        networks = metrics.Stopwatch()
        # Few at a time: decoded images take memory, and the number of white cells, which bounds the
        # rest, is known only then.
        while part := _next(images, PART, decoding):
            with networks:
                predictions = self.pipeline.predict([each.images[place] for each, place in part])
            for (request, place), prediction in zip(part, predictions, strict=True):
                request.cells += len(prediction.cells)
                request.images[place] = self._answer(request, prediction)
        if networks.seconds:
            self.metrics.examined(networks.seconds)

    def _explain(self, requests: Sequence[Request], decoding: metrics.Stopwatch) -> None:
        """Answer the images of explanations."""
        images = decoded_images(requests, True, self.pipeline.fit)
        while part := _next(images, 1, decoding):
            [(request, place)] = part
            prediction, heat = self.pipeline.explain(request.images[place])
            document = self._answer(request, prediction)
            request.images[place] = {**document, "heat_map": to_png(heat)}
            request.cells += EXPLAINED * len(prediction.cells)

    def _answer(self, request: Request, prediction: Prediction) -> Answer:
        return answer(self.model_name, self.card, prediction, request.embeddings)


def _next(
    images: Iterator[tuple[Request, int]], count: int, decoding: metrics.Stopwatch
) -> list[tuple[Request, int]]:
    """Take the next images, which decodes them."""
    with decoding:
        return list(islice(images, count))


def _is_describe(data: Sequence[Mapping[str, Any]], headers: Sequence[Mapping[str, Any]]) -> bool:
    # TorchServe requests the card with this header, alone in a batch and without a body. If a
    # client sends the header, the request also has `explain`. The older route /invocations does
    # not set that: a client without an image gets the card there, which is harmless.
    return (
        len(data) == 1
        and not data[0]
        and headers[0].get("describe") == "True"
        and "explain" not in headers[0]
    )


def _respond(request: Request, index: int, context: Any) -> bytes:
    """Encode the answers to one request and set its HTTP status."""
    documents = [vars(each) if isinstance(each, InputError) else each for each in request.images]
    status = HTTPStatus.OK
    if not request.many and isinstance(request.images[0], InputError):
        status = HTTPStatus(request.images[0].code)
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            context.set_response_header(index, "Retry-After", "1")
    context.set_response_status(status, status.phrase, index)
    context.set_response_content_type(index, "application/json")
    if request.encode and status == HTTPStatus.OK:
        body, length = request.encode(documents)
        if length is not None:
            context.set_response_content_type(index, "application/octet-stream")
            context.set_response_header(index, inference_protocol.LENGTH, str(length))
        return body
    return orjson.dumps({"predictions": documents} if request.many else documents[0])
