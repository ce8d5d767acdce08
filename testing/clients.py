"""Clients that send requests while a block runs, each in its own thread; and a page session."""

from __future__ import annotations

import abc
import re
import threading
from typing import TypeVar

import requests

Own = TypeVar("Own", bound="Clients")


class Clients(abc.ABC):
    """Clients that each run `ask_on` until `ending` is set; the block raises what one raised."""

    def __init__(self, count: int) -> None:
        self.ending = threading.Event()
        self._failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(count)
        ]

    @abc.abstractmethod
    def ask_on(self, number: int) -> None:
        """Send requests as one client until `ending` is set."""

    def _run(self, number: int) -> None:
        try:
            self.ask_on(number)
        except BaseException as error:
            self._failures.append(error)

    def __enter__(self: Own) -> Own:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.ending.set()
        for thread in self._threads:
            thread.join()
        if kind is None and self._failures:
            raise self._failures[0]


def page_session(session: requests.Session, url: str) -> requests.Session:
    """Add the page's CSRF token to a session, and the referrer that it requires over HTTPS."""
    session.headers["Referer"] = url
    form = session.get(url, timeout=60).text
    session.headers["X-CSRFToken"] = re.findall(r'name="csrf_token" value="([^"]+)"', form)[0]
    return session
