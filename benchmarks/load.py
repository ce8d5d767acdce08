"""A steady load, for locust: people ask what a cell is, and each answer is written down.

The service is that of the environment (RUN_DIR and its like); LOAD_LOG names the file to write.
Each line there: when it was asked (seconds since the epoch), milliseconds, who asked, the version
that answered, and the error if none did.
"""

from __future__ import annotations

import csv
import os
import random
import time
from pathlib import Path
from typing import Any

from locust import User, between, events, task

from serving.client import InferenceClient, ServiceError
from serving.deployment import known_answers
from serving.settings import Settings

# Seconds between two requests of a user. At random, as users of one pace would fall into step
# whenever the service makes them wait.
PAUSE = (0.2, 1.1)
# The users take turns in playing so many people.
PEOPLE = 500
IMAGES = [path.read_bytes() for path in sorted(known_answers.SAMPLES.glob("*.png"))]


@events.test_start.add_listener
def open_log(environment: Any, **_: Any) -> None:
    """Open what all users share: the client with its pool of connections, and the log."""
    # Each line is written at once, so that a load that is killed leaves what it saw.
    log = Path(os.environ["LOAD_LOG"]).open("w", buffering=1, newline="")  # noqa: SIM115
    environment.client = InferenceClient(Settings.from_environment(), pool_size=32)
    environment.log = csv.writer(log)
    environment.log.writerow(["time", "milliseconds", "person", "version", "error"])


class Visitor(User):
    """One connection's worth of people."""

    wait_time = between(*PAUSE)

    @task
    def ask(self) -> None:
        """Ask once, and write down what came of it."""
        person, image = f"person-{random.randrange(PEOPLE)}", random.choice(IMAGES)
        moment, started = time.time(), time.perf_counter()
        version, error = "", None
        try:
            version = self.environment.client.predict(image, client=person)["version"]
        except ServiceError as failure:
            error = failure
        milliseconds = 1000 * (time.perf_counter() - started)
        said = f"{error.status} {error.type}: {error}" if error else ""
        self.environment.log.writerow(
            [f"{moment:.3f}", f"{milliseconds:.2f}", person, version, said]
        )
        self.environment.events.request.fire(
            request_type="POST",
            name="predictions",
            response_time=milliseconds,
            response_length=0,
            exception=error,
        )
