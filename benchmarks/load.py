"""The clients of a scenario, in a process of their own; each request becomes a line of a CSV file.

    python -m benchmarks.load LOG users=16 direct=6

The environment names the service (RUN_DIR and others). SIGTERM ends the load.
"""

from __future__ import annotations

import contextlib
import csv
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from threading import Event, current_thread
from typing import Any, ClassVar

import requests

from benchmarks.outcome import FIELDS, Request
from serving.client import InferenceClient, ServiceError
from serving.deployment import known_answers
from serving.http import local_session
from serving.settings import MODEL, Settings
from serving.torchserve.tokens import TokenError, Tokens
from testing import connections, formats, hostile
from testing.clients import Clients, page_session
from testing.connections import Call
from testing.mutation import damaged

IMAGES = [path.read_bytes() for path in sorted(known_answers.SAMPLES.glob("*.png"))]
# TorchServe did not accept such a request: no connection, a full queue, a token just renewed. A
# client can send it again. TorchServe also answers 503 for an exception of the handler, and 400
# for a bad body; it had accepted those.
NOT_ACCEPTED = ("refused", "503 ServiceUnavailableException", "400 InvalidKeyException")
# What a client receives: its name, who answered, the answer, and whether that is a failure.
Answer = tuple[str, str, str, bool]


class Load(Clients):
    """Clients that send one request after another, with a random pause between."""

    name = ""
    # In seconds. Clients with a fixed pace would fall into step whenever the service delays them.
    pause = (0.2, 1.1)

    def __init__(self, settings: Settings, count: int, log: Any) -> None:
        super().__init__(count)
        self.settings, self._log = settings, log

    def ask_on(self, number: int) -> None:
        chance = random.Random(number)
        while not self.ending.wait(chance.uniform(*self.pause)):
            moment, started = time.time(), time.perf_counter()
            client, by, said, failed = self.ask(chance)
            milliseconds = round(1000 * (time.perf_counter() - started), 2)
            request = Request(round(moment, 3), milliseconds, self.name, client, by, said, failed)
            self._log.writerow([getattr(request, field) for field in FIELDS])

    def ask(self, chance: random.Random) -> Answer:
        """Send one request."""
        raise NotImplementedError


class Users(Load):
    """Users of `serving.client`, which retries; they take turns as 500 visitors."""

    name = "users"

    def __init__(self, settings: Settings, count: int, log: Any) -> None:
        super().__init__(settings, count, log)
        self._client = InferenceClient(settings, pool_size=2 * count)

    def ask(self, chance: random.Random) -> Answer:
        visitor = f"visitor-{chance.randrange(500)}"
        try:
            answer = self._client.predict(chance.choice(IMAGES), client=visitor)
        except ServiceError as error:
            return visitor, "", f"{error.status} {error.type}: {error}", True
        return visitor, answer["version"], "200", False


class Direct(Load):
    """Clients of TorchServe itself, which send nothing twice."""

    name, pause = "direct", (0.05, 0.3)

    def __init__(self, settings: Settings, count: int, log: Any) -> None:
        super().__init__(settings, count, log)
        self._tokens = Tokens(settings.run_dir)
        self._image = formats.encoded(hostile.sample(), "JPEG")

    def ask(self, chance: random.Random) -> Answer:
        said = "refused"
        url = f"{self.settings.inference_url}/predictions/{MODEL}"
        try:
            headers = {"Content-Type": hostile.BYTES} | self._tokens.header("inference")
            said = connections.ask(Call(url, self._image, headers))
        except TokenError:
            pass
        return "", "", said, said not in ("200", *NOT_ACCEPTED)


class Mixed(Load):
    """Clients of TorchServe and of the page, with images of all kinds; some are damaged."""

    name, pause = "mixed", (0.15, 0.6)
    sizes = ((320, 240), (640, 480), (1600, 1200))
    kinds = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
    # How often each kind of request is sent, in percent.
    mix: ClassVar = {"one": 50, "page": 20, "damaged": 15, "form": 6, "JSON": 6, "explanation": 3}

    def __init__(self, settings: Settings, count: int, log: Any) -> None:
        super().__init__(settings, count, log)
        self._tokens = Tokens(settings.run_dir)
        samples = product(self.sizes, self.kinds)
        self._images = [formats.encoded(hostile.sample(size), kind) for size, kind in samples]
        self._sessions: dict[str, requests.Session] = {}

    def ask(self, chance: random.Random) -> Answer:
        [what] = chance.choices(list(self.mix), list(self.mix.values()))
        try:
            status = str(self._send(what, chance))
        except OSError as error:
            status = type(error).__name__
        allowed = {
            "damaged": ("200", "400", "413", "415"),
            # Put off: one at a time is answered.
            "explanation": ("200", "503"),
        }
        return what, what, f"{status} ({what})", status not in allowed.get(what, ("200",))

    def _send(self, what: str, chance: random.Random) -> int:
        image, page = chance.choice(self._images), self.settings.frontend_url
        thread = current_thread().name
        if thread not in self._sessions:
            self._sessions[thread] = page_session(local_session(), page)
        session = self._sessions[thread]
        if what == "page":
            files = {"image": image}
            return session.post(f"{page}/api/predictions", files=files, timeout=60).status_code
        kind, body = hostile.BYTES, image
        if what == "damaged":
            body = damaged(image, chance)
        elif what in ("form", "JSON"):
            make = connections.in_form if what == "form" else connections.in_json
            kind, body = make(chance.sample(self._images[:10], 4))
        path = "explanations" if what == "explanation" else "predictions"
        url = f"{self.settings.inference_url}/{path}/{MODEL}"
        headers = {"Content-Type": kind} | self._tokens.header("inference")
        return session.post(url, body, headers=headers, timeout=60).status_code


class Gateway(Load):
    """Clients of the load balancer (GATEWAY_URL), which send nothing twice."""

    name, pause = "clients", (0.02, 0.1)

    def __init__(self, settings: Settings, count: int, log: Any) -> None:
        super().__init__(settings, count, log)
        self._session = local_session(count)
        self._session.mount("https://", requests.adapters.HTTPAdapter(pool_maxsize=count))
        self._session.verify = os.environ["GATEWAY_CERTIFICATE"]
        self._session.headers["X-API-Key"] = os.environ["GATEWAY_KEY"]

    def ask(self, chance: random.Random) -> Answer:
        name = secrets.token_hex(8)
        headers = {"Content-Type": hostile.BYTES, "X-Request-ID": name}
        url, image = os.environ["GATEWAY_URL"], chance.choice(IMAGES)
        try:
            answer = self._session.post(url, image, headers=headers, timeout=30)
        except OSError as error:
            return name, "", repr(error), True
        failed = answer.status_code != 200
        said = f"{answer.status_code} {answer.text[:200]}" if failed else "200"
        return name, "", said, failed


LOADS: Mapping[str, type[Load]] = {
    "users": Users,
    "direct": Direct,
    "mixed": Mixed,
    "gateway": Gateway,
}


def main(path: str, *wanted: str) -> None:
    """Run each load with as many clients as wanted, until SIGTERM."""
    ended, settings = Event(), Settings.from_environment()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    # Each line is written at once, so that a killed load leaves what it saw.
    with Path(path).open("w", buffering=1, newline="") as file:
        log = csv.writer(file)
        pairs = [each.split("=") for each in wanted]
        loads = [LOADS[name](settings, int(count), log) for name, count in pairs]
        log.writerow(FIELDS)
        with contextlib.ExitStack() as stack:
            for load in loads:
                stack.enter_context(load)
            ended.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
