"""TorchServe's entry point: batches of requests in, an answer for each of them out.

A request can't harm its neighbours: whatever is wrong with it becomes its own error. TorchServe
wants exactly one class here; what it needs stands in the package `handler` beside it.
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
from handler.preprocessing import InputError, Picture, decode_all
from handler.verdict import Answer, answer
from handler.versions import load


class BloodCellHandler:
    """Serve one version: `initialize` once for each worker, then `handle` for each batch."""

    def initialize(self, context: Any) -> None:
        """Load the version and run it at every batch size, so that no request waits for that.

        Raises RuntimeError, which TorchServe reports as a failed load, if the weights are not
        the ones that the card names, or if there is no GPU where one is wanted.
        """
        # Java takes every line apart. Where an archive runs under TorchServe's own worker, that one
        # would print some for each batch, and for each body that is no JSON after all.
        logging.getLogger().setLevel(logging.ERROR)
        logging.getLogger("ts.service").setLevel(logging.WARNING)
        properties = context.system_properties
        model_dir = Path(properties["model_dir"])
        self.model_name = context.manifest["model"]["modelName"]
        self.card = json.loads((model_dir / "card.json").read_text())
        gpu = properties.get("gpu_id")
        if context.model_yaml_config.get("deviceType") == "gpu" and gpu is None:
            # TorchServe sees no GPU, and would do with the cores and not say so.
            raise RuntimeError(f"deviceType is gpu, but TorchServe finds none. {CURE}")
        self.version = load(
            model_dir,
            self.card,
            batch_size=int(properties.get("batch_size") or 1),
            threads=context.model_yaml_config["handler"]["threads"],
            gpu=gpu,
        )
        self.version.warm_up()
        self.metrics = metrics.start(self.card["version"])

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[Any]:
        """Answer a batch: one JSON document for each row of data, in its order."""
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
                (picture, explained)
                for pictures, _many, explained in requests
                for picture in pictures
                if isinstance(picture, Picture)
            ]
        )
        answered = [
            [image if isinstance(image, InputError) else next(answers) for image in images]
            for images, _many, _explained in requests
        ]
        self.metrics.answered(
            chain.from_iterable(
                each
                for each, header in zip(answered, headers, strict=True)
                # Sent to see whether the service is well, such an image says nothing of its work.
                if header.get("X-Known-Image") != "true"
            )
        )
        return [
            _respond(each, many, index, context)
            for index, (each, (_, many, _)) in enumerate(zip(answered, requests, strict=True))
        ]

    def _read(
        self, row: Mapping[str, Any], header: Mapping[str, Any]
    ) -> tuple[Sequence[Picture | InputError], bool, bool]:
        """Decode one request's images; tell if it wants a list for an answer, and explanations."""
        # Set by TorchServe for /explanations, or by the caller: it concerns this request alone.
        explained = header.get("explain") == "True"
        try:
            payload = parse(row, header)
        except InputError as error:
            return [error], False, explained
        return decode_all(payload.images, self.version.fit), payload.many, explained

    def _answer(self, asked: Sequence[tuple[Picture, bool]]) -> Iterator[Answer | InputError]:
        """Answer pictures in their order; those to be explained get a heat map, too."""
        plain = [picture for picture, explained in asked if not explained]
        started = perf_counter()
        examinations = iter(self.version.examine(plain))
        if plain:
            self.metrics.examined(perf_counter() - started)
        for picture, explained in asked:
            if explained:
                yield self._explain(picture)
            else:
                yield answer(self.model_name, self.card, next(examinations))

    def _explain(self, picture: Picture) -> Answer | InputError:
        """Answer a picture with a heat map, or say that there is none now."""
        try:
            examination, heat = self.version.explain(picture)
            said = answer(self.model_name, self.card, examination)
            return {**said, "heat_map": to_png(heat)}
        # It needs torch, and much memory. Where they fail, the neighbours need not.
        except Exception:
            logging.exception("An explanation failed.")
            message = "The answer can't be explained now; /predictions gives it without."
            return InputError(503, "ExplanationFailed", message)


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


def _respond(answers: Sequence[Answer | InputError], many: bool, index: int, context: Any) -> bytes:
    """Encode the answers to one request, and set its status."""
    documents = [vars(answer) if isinstance(answer, InputError) else answer for answer in answers]
    status = HTTPStatus.OK
    if not many and isinstance(answers[0], InputError):
        status = HTTPStatus(answers[0].code)
    context.set_response_status(status, status.phrase, index)
    context.set_response_content_type(index, "application/json")
    return orjson.dumps({"predictions": documents} if many else documents[0])
