"""The soak: a steady, mixed load for half an hour, and whether memory grows meanwhile.

Run by `python -m benchmarks.chaos --soak MINUTES`, which writes benchmarks/results/soak.*.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import psutil
import requests
from tqdm import tqdm

from benchmarks.servers import Running, in_json, multipart
from serving.http import local_session
from serving.settings import MODEL, Settings
from serving.torchserve.tokens import Tokens
from testing import hostile
from testing.clients import Clients, page_session
from testing.hostile import encoded, sample
from testing.service import deployed, machine

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CLIENTS = 4
# Seconds between two requests of a client, and between two looks at the memory.
PAUSE = (0.15, 0.6)
EVERY = 10.0
# What comes before is warm-up.
COUNTED = 2 / 3
SIZES = ((320, 240), (640, 480), (1600, 1200))
KINDS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
# MB an hour by which nothing may still grow in the end.
LEAK = 50.0
# How often each thing is asked for, in a hundred.
WISHES = {"one": 50, "page": 20, "damaged": 15, "form": 6, "JSON": 6, "explanation": 3}
TITLES = {"worker": "Workers", "java": "Java", "python": "Page and supervisor"}


def soak(minutes: float, folder: Path, results: Path) -> list[str]:
    """Put the load on a service of its own, and write what its memory did; return problems."""
    samples: list[dict[str, Any]] = []
    with deployed(folder) as service, contextlib.suppress(KeyboardInterrupt):
        running = Running(service.settings.inference_url, psutil.Process(service.process.pid))
        started = time.monotonic()
        # What was seen until someone breaks it off is worth having, too.
        with Visitors(service.settings) as visitors:
            for at in tqdm(range(int(60 * minutes / EVERY)), unit="samples"):
                time.sleep(max(0.0, started + at * EVERY - time.monotonic()))
                samples.append(_sample(running, time.monotonic() - started))
    document = summary(samples, visitors.counts)
    results.mkdir(parents=True, exist_ok=True)
    (results / "soak.json").write_text(json.dumps(document, indent=1) + "\n")
    (results / "soak.md").write_text(page(document))
    plot(results / "soak.png", document)
    problems: list[str] = document["problems"]
    return problems


def summary(samples: Sequence[dict[str, Any]], counts: Counter[str]) -> dict[str, Any]:
    """Return all figures of a soak as one document."""
    minutes = samples[-1]["minutes"]
    first, second = minutes * (1 - COUNTED), minutes * (1 - COUNTED / 2)
    slopes = {kind: slope(samples, kind, first) for kind in TITLES}
    last = {kind: slope(samples, kind, second) for kind in TITLES}
    problems = [
        f"{count} times {said}"
        for said, count in counts.items()
        if not said.startswith(("200", "400", "413", "415"))
    ]
    if not counts:
        problems.append("Nothing was asked.")
    if len({tuple(each["workers"]) for each in samples}) > 1:
        problems.append("A worker ended.")
    for kind, found in last.items():
        if found is None:
            problems.append(f"{TITLES[kind]}: it was too short to tell a slope.")
        # By less it may be chance.
        elif found["mb_per_hour"] - 2 * found["standard_error"] > LEAK:
            more = f"{found['mb_per_hour']:g} MB an hour more"
            problems.append(f"{TITLES[kind]}: {more} still in the last third.")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "clients": CLIENTS,
        "minutes": round(minutes, 1),
        "counted_from_minute": round(first, 1),
        "answers": dict(sorted(counts.items())),
        "slopes": slopes,
        "slopes_of_the_last_third": last,
        "samples": list(samples),
        "problems": problems,
    }


def slope(samples: Sequence[dict[str, Any]], kind: str, first: float) -> dict[str, float] | None:
    """Return by how many MB an hour memory grows from a minute on, and the standard error of that.

    None if that is less than three minutes ago. By least squares through the means of whole
    minutes: samples of one minute resemble each other, so they do not count as so many.
    """
    by_minute: dict[int, list[float]] = defaultdict(list)
    for each in samples:
        if each["minutes"] >= first:
            by_minute[int(each["minutes"])].append(each["megabytes"][kind])
    if len(by_minute) < 3:
        return None
    hours = np.array(sorted(by_minute)) / 60
    means = np.array([np.mean(by_minute[minute]) for minute in sorted(by_minute)])
    apart = hours - hours.mean()
    spread = float((apart**2).sum())
    growth = float((apart * means).sum()) / spread
    rest = means - means.mean() - growth * apart
    error = float(np.sqrt((rest**2).sum() / (len(hours) - 2) / spread))
    # Zero is added as rounding may leave -0.
    return {"mb_per_hour": round(growth, 1) + 0.0, "standard_error": round(error, 1)}


def page(document: dict[str, Any]) -> str:
    """Return the soak as Markdown."""
    first, last, host = document["samples"][0], document["samples"][-1], document["machine"]
    total = sum(document["answers"].values())
    lines = [
        "# The soak",
        "",
        f"Written by `make soak`: {document['clients']} clients asked {total:,} times in "
        f"{document['minutes']:g} minutes, of TorchServe and of the page, for answers and "
        "explanations, with images of all kinds and several sizes, alone, as forms and as JSON; "
        f"some were damaged. {host['processor']}, {host['cores']} cores; {document['date']}.",
        "",
        "Memory is what the processes hold by themselves (RssAnon), without the pages of files, "
        "such as libraries. Slopes are those of the last two thirds, from minute "
        f"{document['counted_from_minute']:g} on, and of the last third, with their standard "
        "errors.",
        "",
        "| | MB at first | MB at last | MB an hour | in the last third |",
        "|---|--:|--:|--:|--:|",
    ]
    for kind, title in TITLES.items():
        cells = [f"{each['megabytes'][kind]:.0f}" for each in (first, last)]
        for which in ("slopes", "slopes_of_the_last_third"):
            found = document[which][kind]
            told = f"{found['mb_per_hour']:+g} ± {found['standard_error']:g}" if found else ""
            cells.append(told)
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines += ["", "![Memory over time](soak.png)", "", "| answers | |", "|---|--:|"]
    lines += [f"| {said} | {count:,} |" for said, count in document["answers"].items()]
    problems = [f"- {problem}" for problem in document["problems"]]
    lines += ["", "Not as it must be:" if problems else "Everything was as it must be.", *problems]
    return "\n".join(lines) + "\n"


def plot(path: Path, document: dict[str, Any]) -> None:
    """Draw the memory over time."""
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    minutes = [each["minutes"] for each in document["samples"]]
    for kind, title in TITLES.items():
        axes.plot(minutes, [each["megabytes"][kind] for each in document["samples"]], label=title)
    axes.axvline(document["counted_from_minute"], color="#888888", linestyle=":")
    axes.set(xlabel="minutes", ylabel="MB (RssAnon)", ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _sample(running: Running, seconds: float) -> dict[str, Any]:
    found = running.anonymous_megabytes()
    workers = [each.pid for each in running.tree() if "model_service_worker" in _line(each)]
    return {
        "minutes": round(seconds / 60, 3),
        "megabytes": {kind: round(sum(found.get(kind, [])), 1) for kind in TITLES},
        "workers": sorted(workers),
    }


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


class Visitors(Clients):
    """They ask one thing after another, each chosen by its own seed."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(CLIENTS)
        self._settings, self._tokens = settings, Tokens(settings.run_dir)
        self._images = [encoded(sample(size), kind) for size, kind in product(SIZES, KINDS)]
        self.counts: Counter[str] = Counter()

    def ask_on(self, number: int) -> None:
        chance = random.Random(number)
        session = page_session(local_session(), self._settings.frontend_url)
        while not self.ending.wait(chance.uniform(*PAUSE)):
            what = chance.choices(list(WISHES), list(WISHES.values()))[0]
            try:
                said = str(self._ask(session, what, chance))
            except OSError as error:
                said = type(error).__name__
            self.counts[f"{said}, {what}"] += 1

    def _ask(self, session: requests.Session, what: str, chance: random.Random) -> int:
        """Ask for one thing; return the status."""
        image = chance.choice(self._images)
        if what == "page":
            url = f"{self._settings.frontend_url}/api/predictions"
            return session.post(url, files={"image": image}, timeout=60).status_code
        kind, body = hostile.BYTES, image
        if what == "damaged":
            body = hostile.mutate(image, chance.getrandbits(30))
        elif what in ("form", "JSON"):
            make = multipart if what == "form" else in_json
            kind, body = make(chance.sample(self._images[:10], 4))
        path = "explanations" if what == "explanation" else "predictions"
        return session.post(
            f"{self._settings.inference_url}/{path}/{MODEL}",
            body,
            headers={"Content-Type": kind} | self._tokens.header("inference"),
            timeout=60,
        ).status_code
