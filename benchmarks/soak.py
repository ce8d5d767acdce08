"""The soak: a steady, mixed load for half an hour, and whether memory grows meanwhile.

Run by `python -m benchmarks.chaos --soak MINUTES`, which writes benchmarks/results/soak.*.
"""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import psutil
from tqdm import tqdm

from benchmarks import hostile
from benchmarks.hostile import Upload, encoded, sample
from benchmarks.servers import Running, in_json, multipart
from benchmarks.service import free_settings, machine, run_service
from serving import deployment
from serving.local import local_session
from serving.settings import MODEL, ROOT, Settings
from serving.tokens import Tokens

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
TITLES = {"worker": "workers", "java": "Java", "python": "page and supervisor"}


def soak(minutes: float, folder: Path, results: Path) -> list[str]:
    """Put the load on a service of its own, and write what its memory did; return problems."""
    wanted = deployment.load(ROOT / "deployment.yaml")
    images = [encoded(sample(size), kind) for size, kind in itertools.product(SIZES, KINDS)]
    service = run_service(free_settings(folder / "run", wanted))
    running = Running(service.settings.inference_url, psutil.Process(service.process.pid))
    ending, counts = threading.Event(), Counter[str]()
    clients = [
        threading.Thread(target=_client, args=(service.settings, images, seed, ending, counts))
        for seed in range(CLIENTS)
    ]
    samples: list[dict[str, Any]] = []
    started = time.monotonic()
    try:
        for client in clients:
            client.start()
        for at in tqdm(range(int(60 * minutes / EVERY)), unit="samples"):
            time.sleep(max(0.0, started + at * EVERY - time.monotonic()))
            samples.append(_sample(running, time.monotonic() - started))
    # What was seen so far is worth having, too.
    except KeyboardInterrupt:
        pass
    finally:
        ending.set()
        for client in clients:
            client.join()
        service.stop()
    document = summary(samples, counts)
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
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
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


def slope(samples: Sequence[dict[str, Any]], kind: str, first: float) -> dict[str, float]:
    """Return by how many MB an hour memory grows from a minute on, and the standard error of that.

    By least squares through the means of whole minutes: samples of one minute resemble each other,
    so they do not count as so many.
    """
    by_minute: dict[int, list[float]] = defaultdict(list)
    for each in samples:
        if each["minutes"] >= first:
            by_minute[int(each["minutes"])].append(each["megabytes"][kind])
    hours = np.array(sorted(by_minute)) / 60
    means = np.array([np.mean(by_minute[minute]) for minute in sorted(by_minute)])
    growth = error = float("nan")
    if len(hours) >= 3:
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
        "Memory counts what processes share in parts (PSS), so it grows, too, when another program "
        "ends that shared libraries with these. Slopes are those of the last two thirds, from "
        f"minute {document['counted_from_minute']:g} on, and of the last third, with their "
        "standard errors.",
        "",
        "| | MB at first | MB at last | MB an hour | in the last third |",
        "|---|--:|--:|--:|--:|",
    ]
    for kind, title in TITLES.items():
        cells = [f"{each['megabytes'][kind]:.0f}" for each in (first, last)]
        for which in ("slopes", "slopes_of_the_last_third"):
            found = document[which][kind]
            cells.append(f"{found['mb_per_hour']:+g} ± {found['standard_error']:g}")
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
    axes.set(xlabel="minutes", ylabel="MB (PSS)", ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _sample(running: Running, seconds: float) -> dict[str, Any]:
    found = running.megabytes()
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


def _client(
    settings: Settings,
    images: Sequence[bytes],
    seed: int,
    ending: threading.Event,
    counts: Counter[str],
) -> None:
    """Ask one thing after another, chosen by the seed, until told to end."""
    chance, tokens, session = random.Random(seed), Tokens(settings.run_dir), local_session()
    token = session.get(settings.frontend_url, timeout=20).text
    token = token.partition('name="csrf_token" value="')[2].partition('"')[0]

    def direct(upload: Upload, path: str) -> int:
        headers = {"Content-Type": upload.content_type} | tokens.header("inference")
        address = f"{settings.inference_url}/{path}/{MODEL}"
        return session.post(address, upload.body, headers=headers, timeout=60).status_code

    def page(body: bytes) -> int:
        return session.post(
            f"{settings.frontend_url}/api/predictions",
            files={"image": body},
            headers={"X-CSRFToken": token},
            timeout=60,
        ).status_code

    while not ending.wait(chance.uniform(*PAUSE)):
        image = chance.choice(images)
        what = chance.choices(
            ("one", "page", "damaged", "form", "JSON", "explanation"), (50, 20, 15, 6, 6, 3)
        )[0]
        try:
            if what == "page":
                status = page(image)
            elif what == "damaged":
                damaged = hostile.mutate(image, chance.getrandbits(30))
                status = direct(Upload(what, damaged), "predictions")
            elif what in ("form", "JSON"):
                make = multipart if what == "form" else in_json
                kind, body = make(chance.sample(images[:10], 4))
                status = direct(Upload(what, body, kind), "predictions")
            else:
                path = "explanations" if what == "explanation" else "predictions"
                status = direct(Upload(what, image), path)
            counts[f"{status}, {what}"] += 1
        except OSError as error:
            counts[f"{type(error).__name__}, {what}"] += 1
