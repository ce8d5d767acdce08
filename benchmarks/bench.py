"""Compare this deployment with its peers, and with the limit of the machine: `make bench`.

In each round every server is started, in a random order, warmed up, and loaded by wrk (on the same
cores) with images of two sizes from 1 to 64 clients, and this deployment with 16 images a request
as well. The run ends if a server answers differently from its kernel.

Writes benchmarks/results/bench.{json,md,png} and the table of docs/performance.md.
QUICK=1 measures a few servers, writes nothing, and prints how the ratios changed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import bench_report, limit, report
from benchmarks.bench_report import CLIENTS, LARGE, SMALL
from benchmarks.peers.kernels import KERNELS
from benchmarks.servers import JPEG, PEER_NAMES, SERVERS, SERVICE, Running, Server, ready, set_up
from serving.settings import ROOT
from testing import processes
from testing.connections import in_form, in_json
from training import data

SCRIPT = ROOT / "benchmarks" / "wrk.lua"
ROUNDS, QUICK_ROUNDS = 5, 3
IMAGES = 256
# Seconds of a load.
SECONDS = {SMALL: 2, LARGE: 1}
WARM_UP = 4
# JSON holds six digits of a probability.
SAME = 1e-4
# Fifths of a second for a server to come to rest after a load; LitServe never does.
DRAIN = 15
# Enough that the workers always have a request waiting.
MANY, MANY_CLIENTS = 16, 64


def main() -> None:
    """Compare all servers, or with QUICK=1 a few."""
    quick = bool(os.environ.get("QUICK"))
    if not shutil.which("wrk"):
        sys.exit("wrk is missing (Debian: apt install wrk).")
    root = report.images_root()
    # First, so that a missing one is reported at once.
    last = bench_report.load() if quick else {}
    chosen = bench_report.quick_choice(SERVERS) if quick else SERVERS
    for name in PEER_NAMES:
        if any(server.name.startswith(name) for server in chosen):
            set_up(name)
    with tempfile.TemporaryDirectory() as folder:
        found = compare(chosen, Bodies(root, Path(folder)), QUICK_ROUNDS if quick else ROUNDS)
    if quick:
        print(bench_report.against(found, last))
    else:
        bench_report.write(found | report.about())


class Bodies:
    """Folders of request bodies, each made when it is first needed."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._folder = folder
        test = [image.path for image in data.list_images(root, "TEST")]
        photographs = [sample.path for sample in data.photographs(root, "TRAIN", "TEST")]
        draw = random.Random(0)
        self.images = {
            SMALL: [path.read_bytes() for path in draw.sample(sorted(test), IMAGES)],
            LARGE: [path.read_bytes() for path in draw.sample(sorted(photographs), IMAGES)],
        }

    def raw(self, size: str) -> Path:
        """Return the folder of the images themselves."""
        return self._written(size, [(JPEG, data) for data in self.images[size]])[0]

    def singles(self, size: str, server: Server) -> tuple[Path, str]:
        """Return a folder of requests with one image each, and their content type."""
        name = f"{size} form" if server.form else size
        return self._written(name, [server.request(data) for data in self.images[size]])

    def some(self) -> list[bytes]:
        """Return images of both sizes, whose answers are compared."""
        return [image for images in self.images.values() for image in images[:16]]

    def several(self, count: int, form: bool = False) -> tuple[Path, str]:
        """Return a folder of requests with several images of 320x240, as JSON or as forms."""
        images = self.images[SMALL]
        drawn = [random.Random(at).sample(images, count) for at in range(32)]
        make, name = (in_form, "form") if form else (in_json, "JSON")
        return self._written(f"{count} images {name}", [make(each) for each in drawn])

    def _written(self, name: str, made: Sequence[tuple[str, bytes]]) -> tuple[Path, str]:
        folder = self._folder / name.replace(" ", "-")
        [content_type] = {own for own, _ in made}
        if not folder.exists():
            folder.mkdir()
            for index, (_, body) in enumerate(made):
                (folder / f"{index:04}").write_bytes(body)
        return folder, content_type


def compare(servers: Sequence[Server], bodies: Bodies, rounds: int) -> dict[str, Any]:
    """Load every server in every round; return its figures by name.

    Raises RuntimeError if a server answers differently from its kernel.
    """
    found: dict[str, Any] = {server.name: {"starts": [], "loads": []} for server in servers}
    limits: list[dict[str, Any]] = []
    images = bodies.some()
    known = {name: [_shares(each) for each in kernel()(images)] for name, kernel in KERNELS.items()}
    bar = tqdm(total=rounds * (len(servers) + 1), unit="server", smoothing=0)
    for number in range(rounds):
        order: list[Server | None] = [None, *servers]
        random.Random(number).shuffle(order)
        for server in order:
            bar.set_description(f"round {number + 1}: {server.title if server else 'the limit'}")
            if server is None:
                limits.append({size: limit.measure(bodies.raw(size), 2.0) for size in SECONDS})
            else:
                seen = found[server.name]
                with ready(server) as (running, seconds):
                    load(running, bodies.singles(SMALL, server), 16, WARM_UP)
                    rows = _loads(server, running, bodies)
                    seen["loads"] += [{"round": number, **row} for row in rows]
                    seen["starts"].append({"seconds": round(seconds, 2), **_memory(running)})
                    said = [_ask(server, running, image) for image in images]
                    seen["differences"] = _difference(server, said, known[server.kernel])
            bar.update()
    bar.close()
    return {"rounds": rounds, "servers": found, "limit": limits}


def _memory(running: Running) -> dict[str, Any]:
    """Return the memory of the largest process of each kind, and of all processes."""
    whole = sum(processes.megabytes(running.process).values())
    largest = processes.megabytes(running.process, max)
    return {"megabytes": largest, "megabytes_in_all": round(whole, 1)}


def _loads(server: Server, running: Running, bodies: Bodies) -> Iterator[dict[str, Any]]:
    for size, seconds in SECONDS.items():
        for clients in CLIENTS:
            row = load(running, bodies.singles(size, server), clients, seconds)
            yield {"size": size, "clients": clients, "images": 1, "form": False, **row}
    if server is SERVICE:
        for form in (False, True):
            row = load(running, bodies.several(MANY, form), MANY_CLIENTS, SECONDS[SMALL], MANY)
            yield {"size": SMALL, "clients": MANY_CLIENTS, "images": MANY, "form": form, **row}


def load(
    running: Running, sent: tuple[Path, str], clients: int, seconds: int, images: int = 1
) -> dict[str, Any]:
    """Load a server; return images a second, milliseconds, failures, and processor time an image.

    Raises RuntimeError if no request was answered.
    """
    folder, content_type = sent
    _drain(running)
    before = processes.cpu_seconds(running.process)
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s"]
    done = subprocess.run(
        [*command, "-s", str(SCRIPT), running.url],
        env=os.environ
        | {"BODIES": str(folder), "CONTENT_TYPE": content_type}
        | {name.upper(): value for name, value in running.headers.items()},
        capture_output=True,
        text=True,
        check=True,
    )
    after = processes.cpu_seconds(running.process)
    # The time of a process that has ended is not counted any more.
    spent = {kind: max(0.0, now - before.get(kind, 0)) for kind, now in after.items()}
    row = json.loads(done.stdout.splitlines()[-1])
    if row["requests"] == row["refused"]:
        raise RuntimeError(f"{running.url} answered none of {clients} clients in {seconds} s.")
    answered = images * (row["requests"] - row["refused"])
    return {
        "images_a_second": round(answered / row["seconds"], 1),
        "p50": row["p50"],
        "p99": row["p99"],
        "failed": row["refused"] + row["broken"],
        "cpu_microseconds": {
            kind: round(1e6 * seconds / answered, 1) for kind, seconds in spent.items()
        },
    }


def _drain(running: Running) -> None:
    """Wait until a server has finished what the previous load left in its queues."""
    for _ in range(DRAIN):
        spent = sum(processes.cpu_seconds(running.process).values())
        time.sleep(0.2)
        if sum(processes.cpu_seconds(running.process).values()) - spent < 0.06:
            return


def _ask(server: Server, running: Running, image: bytes) -> dict[str, float]:
    """Return the probabilities of an image."""
    answer = running.post(*server.request(image))
    answer.raise_for_status()
    return _shares(answer.json())


def _shares(answer: dict[str, Any]) -> dict[str, float]:
    shares: dict[str, float] = answer.get("probabilities", answer)
    return shares


def _difference(
    server: Server, said: Sequence[dict[str, float]], known: Sequence[dict[str, float]]
) -> float:
    """Return the largest difference of a probability; raise RuntimeError if it is too large."""
    difference = max(
        abs(ours[label] - theirs[label])
        for ours, theirs in zip(known, said, strict=True)
        for label in ours
    )
    if difference > SAME:
        message = f"{server.title} answers differently from its kernel: by {difference}."
        raise RuntimeError(message)
    return difference


if __name__ == "__main__":
    main()
