"""TorchServe's entry point: a batch of requests in, one JSON answer for each out.

TorchServe expects exactly one class in this file; the rest is in the package `handler`.
An error in one request never affects the others of its batch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

import orjson

from handler import metrics
from handler.engine import CURE
from handler.explanation import to_png
from handler.payload import parse
from handler.pipelines import load
from handler.preprocessing import DecodedImage, InputError, decode_all
from handler.verdict import Answer, answer


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
        self.metrics = metrics.start(self.card["version"])

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[Any]:
        """Answer a batch: one JSON document for each row of data, in order."""
        for index in range(len(data)):
            context.set_response_header(index, "X-Model-Version", self.card["version"])
        headers = [context.get_all_request_header(index) for index in range(len(data))]
        if _is_describe(data, headers):
            return [self.card]
        started = perf_counter()
        requests = [self._read(row, header) for row, header in zip(data, headers, strict=True)]
        self.metrics.decoded(len(data), perf_counter() - started)
        answers = self._answer(
            [
                (image, explain)
                for images, _many, explain in requests
                for image in images
                if isinstance(image, DecodedImage)
            ]
        )
        answered = [
            [image if isinstance(image, InputError) else next(answers) for image in images]
            for images, _many, _explain in requests
        ]
        self.metrics.answered(
            chain.from_iterable(
                each
                for each, header in zip(answered, headers, strict=True)
                # Health checks send this header; they are not counted.
                if header.get("X-Known-Image") != "true"
            )
        )
        return [
            _respond(each, many, index, context)
            for index, (each, (_, many, _)) in enumerate(zip(answered, requests, strict=True))
        ]

    def _read(
        self, row: Mapping[str, Any], header: Mapping[str, Any]
    ) -> tuple[Sequence[DecodedImage | InputError], bool, bool]:
        """Return one request's images, whether it gets a list, and whether it gets heat maps."""
        # TorchServe sets this header for /explanations; a client may set it too.
        explain = header.get("explain") == "True"
        try:
            payload = parse(row, header)
        except InputError as error:
            return [error], False, explain
        return decode_all(payload.images, self.pipeline.fit), payload.many, explain

    def _answer(self, images: Sequence[tuple[DecodedImage, bool]]) -> Iterator[Answer | InputError]:
        """Yield the answer to each image, with a heat map if its flag is set."""
        plain = [image for image, explain in images if not explain]
        started = perf_counter()
        predictions = iter(self.pipeline.predict(plain))
        if plain:
            self.metrics.examined(perf_counter() - started)
        for image, explain in images:
            if explain:
                yield self._explain(image)
            else:
                yield answer(self.model_name, self.card, next(predictions))

    def _explain(self, image: DecodedImage) -> Answer | InputError:
        """Answer one image with a heat map; return an error if the explanation fails."""
        try:
            prediction, heat = self.pipeline.explain(image)
            return {**answer(self.model_name, self.card, prediction), "heat_map": to_png(heat)}
        # Explanations need torch and much memory; their failure must not fail the batch.
        except Exception:
            logging.exception("An explanation failed.")
            message = "The explanation failed; /predictions answers without one."
            return InputError(503, "ExplanationFailed", message)


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


def _respond(answers: Sequence[Answer | InputError], many: bool, index: int, context: Any) -> bytes:
    """Encode the answers to one request and set its HTTP status."""
    documents = [vars(answer) if isinstance(answer, InputError) else answer for answer in answers]
    status = HTTPStatus.OK
    if not many and isinstance(answers[0], InputError):
        status = HTTPStatus(answers[0].code)
    context.set_response_status(status, status.phrase, index)
    context.set_response_content_type(index, "application/json")
    return orjson.dumps({"predictions": documents} if many else documents[0])
