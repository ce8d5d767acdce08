"""Draw the panels of deploy/grafana/dashboard.json from real data: `python -m scripts.dashboard`.

It runs a service of its own under some load, damaged images and a worker's death among it, has a
real Prometheus watch it, asks that the dashboard's own queries, and draws the answers to
docs/screenshots/dashboard.png. It shows what the panels hold, not what Grafana looks like.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import requests
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from scripts.draw_cells import GREY, NATURAL_CELLS, draw_field
from serving.client import InferenceClient, ManagementClient, ServiceError
from serving.deployment import known_answers
from serving.http import local_session
from serving.settings import ROOT
from testing import prometheus
from testing.clients import Clients, page_session
from testing.prometheus import Prometheus
from testing.service import Service, deployed

DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"
TARGET = ROOT / "docs" / "screenshots" / "dashboard.png"
INK, GRID = "#3b3b46", "#e4e4ea"
# Seconds between two scrapes, and two points.
STEP = 2


def main() -> int:
    """Load a service, and draw what Prometheus saw; return the exit code."""
    parser = argparse.ArgumentParser(description="draw the dashboard's panels from real data")
    parser.add_argument("--seconds", type=int, default=420, help="of load (default: 420)")
    seconds = parser.parse_args().seconds
    if not prometheus.is_installed():
        print(f"error: {prometheus.MISSING}", file=sys.stderr)
        return 1
    with (
        tempfile.TemporaryDirectory() as scratch,
        deployed(Path(scratch)) as service,
        prometheus.watching(service.settings, Path(scratch), f"{STEP}s") as watcher,
    ):
        begun = time.time()
        load(service, seconds)
        draw(watcher, begun, time.time(), TARGET)
    print(f"wrote {TARGET}")
    return 0


def load(service: Service, seconds: int) -> None:
    """Ask as programs and people do, kill a worker halfway, and ask on."""
    images = draw_images()
    with Programs(4, service, images), Person(1, service, images):
        time.sleep(seconds / 2)
        kill_worker(service)
        time.sleep(seconds / 2)


def draw_images() -> list[bytes]:
    """Return drawn cells of each class, in about the shares of blood, and the known images."""
    images = [path.read_bytes() for path in sorted(known_answers.SAMPLES.glob("*.png"))]
    for label, count in {"NEUTROPHIL": 6, "LYMPHOCYTE": 3, "MONOCYTE": 1}.items():
        for seed in range(count):
            drawn = io.BytesIO()
            field = draw_field([(label, 0.5, 0.5)], seed, (320, 240), NATURAL_CELLS, GREY)
            field.save(drawn, "png")
            images.append(drawn.getvalue())
    return images


def choose(images: Sequence[bytes], dice: random.Random) -> bytes:
    """Return one of the images; one in 20 is cut off."""
    image = dice.choice(images)
    return image[:2000] if dice.random() < 0.05 else image


class Asking(Clients):
    """Clients of a service that ask about some images."""

    def __init__(self, count: int, service: Service, images: Sequence[bytes]) -> None:
        super().__init__(count)
        self.service, self.images = service, images


class Programs(Asking):
    """They ask as programs do, more at some times than at others."""

    def ask_on(self, number: int) -> None:
        client, dice = InferenceClient(self.service.settings), random.Random(number)
        while not self.ending.wait(0.05 + 0.3 * math.sin(time.time() / 40) ** 2):
            with contextlib.suppress(ServiceError):
                version = "1.0" if dice.random() < 0.2 else "2.0"
                if dice.random() < 0.02:
                    client.explain(choose(self.images, dice), version)
                else:
                    client.predict(choose(self.images, dice), version)
        client.close()


class Person(Asking):
    """It asks as the page's script does."""

    def ask_on(self, number: int) -> None:
        dice, url = random.Random(number), self.service.frontend_url
        with page_session(local_session(), url) as session:
            while not self.ending.wait(0.2):
                with contextlib.suppress(requests.RequestException):
                    session.post(
                        f"{url}/api/predictions",
                        files={"image": choose(self.images, dice)},
                        timeout=30,
                    )


def kill_worker(service: Service) -> None:
    management = ManagementClient(service.settings)
    os.kill(management.describe("2.0")["workers"][0]["pid"], signal.SIGKILL)
    management.close()


def draw(watcher: Prometheus, begun: float, ended: float, target: Path) -> None:
    """Ask the dashboard's queries for a span of time, and draw its panels."""
    document = json.loads(DASHBOARD.read_text())
    panels = document["panels"]
    columns = 3
    mpl.rcParams.update({"font.size": 8, "text.color": INK, "axes.labelcolor": INK})
    figure, axes = plt.subplots(
        -(-len(panels) // columns), columns, figsize=(15, 17.5), layout="constrained"
    )
    for panel, axis in zip(panels, axes.flat, strict=False):
        draw_panel(axis, panel, watcher, begun, ended)
    for axis in list(axes.flat)[len(panels) :]:
        axis.remove()
    figure.suptitle(f"{document['title']}: minutes of a service under load", x=0.02, ha="left")
    figure.savefig(target, dpi=90)
    plt.close(figure)


def draw_panel(
    axis: Axes, panel: Mapping[str, Any], watcher: Prometheus, begun: float, ended: float
) -> None:
    """Draw one panel: a line for each series, or areas on top of each other."""
    defaults = panel["fieldConfig"]["defaults"]
    series = [
        (legend(target["legendFormat"], each["metric"]), each["values"])
        for target in panel["targets"]
        for each in watcher.query_range(target["expr"], begun, ended, STEP)
    ]
    if "stacking" in defaults["custom"]:
        stack(axis, series, begun)
    else:
        for name, values in series:
            axis.plot(
                [(at - begun) / 60 for at, _ in values],
                [float(value) for _, value in values],
                label=name,
                linewidth=1.4,
                # What is wanted lies over what is.
                linestyle="--" if name.startswith("wanted") else "-",
            )
    axis.set_title(panel["title"], loc="left", fontsize=10, fontweight="bold", color=INK)
    axis.set_xlim(0, (ended - begun) / 60)
    axis.set_ylim(bottom=defaults.get("min"), top=highest(defaults, series))
    axis.yaxis.set_major_formatter(FuncFormatter(UNITS[defaults["unit"]]))
    axis.grid(color=GRID)
    axis.tick_params(colors=INK, length=0)
    for side in axis.spines.values():
        side.set_visible(False)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False, fontsize=7)


def stack(axis: Axes, series: Sequence[tuple[str, Any]], begun: float) -> None:
    """Draw areas on top of each other."""
    times = sorted({at for _, values in series for at, _ in values})
    known = [{at: float(value) for at, value in values} for _, values in series]
    axis.stackplot(
        [(at - begun) / 60 for at in times],
        [[each.get(at, 0.0) for at in times] for each in known],
        labels=[name for name, _ in series],
        alpha=0.8,
    )


def highest(defaults: Mapping[str, Any], series: Sequence[tuple[str, Any]]) -> float | None:
    """Return where an axis ends: at the panel's own end, or above what there is."""
    values = [float(value) for _, values in series for _, value in values]
    top = max((value for value in values if math.isfinite(value)), default=0.0)
    if "stacking" in defaults["custom"] and "max" not in defaults:
        return None
    return max(defaults["max"] * 1.05, top) if "max" in defaults else top * 1.1 or 1.0


def legend(form: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), form)


def _seconds(value: float, _: object) -> str:
    if value < 1:
        return f"{value * 1000:g} ms"
    return f"{value:g} s" if value < 120 else f"{value / 60:.0f} min"


UNITS = {
    "none": lambda value, _: f"{value:g}",
    "reqps": lambda value, _: f"{value:g}/s",
    "percentunit": lambda value, _: f"{value:.0%}",
    "bytes": lambda value, _: f"{value / 1e6:.0f} MB",
    "s": _seconds,
}

if __name__ == "__main__":
    sys.exit(main())
