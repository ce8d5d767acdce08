"""Start and stop the page's process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping

import requests

from serving.http import local_session
from serving.settings import ROOT, Settings
from serving.supervisor import Ended
from serving.torchserve import StartError
from serving.torchserve.process import die_with_parent

START_PATIENCE = 30.0
STOP_PATIENCE = 30.0


class Page:
    """The process that serves the web page."""

    def __init__(self, settings: Settings, environment: Mapping[str, str]) -> None:
        """Start it; `environment` is added to this process's own."""
        self._url = f"{settings.frontend_url}/readyz"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "frontend"],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        return self._process.poll()

    def wait_until_ready(self) -> None:
        """Return when the page is ready; raise StartError or Ended."""
        deadline = time.monotonic() + START_PATIENCE
        while (code := self.exit_code()) is None:
            try:
                with local_session() as session:
                    session.get(self._url, timeout=5).raise_for_status()
                return
            except requests.RequestException:
                if time.monotonic() > deadline:
                    raise StartError("The page is not ready in time.") from None
                time.sleep(0.1)
        raise Ended(f"The page exited with code {code}.")

    def stop(self) -> None:
        """Stop it after it has answered the requests in flight."""
        self._process.terminate()
        try:
            self._process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
