"""What `make bench` found, in a table, a plot and the README: ratios, as seconds do not travel."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from benchmarks.servers import PEER_NAMES, SERVERS, SERVICE, Server
from serving.settings import ROOT
from training.report import write_readme
from training.version_files import write_json

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RESULTS = ROOT / "benchmarks" / "results" / "bench.json"
SIZES = SMALL, LARGE = "320x240", "640x480"
CLIENTS = (1, 4, 16, 64)
STOCK, STOCK_BOUND, SEED = "torchserve-plain", "torchserve-thread", "flask-plain"
OURS_COLOUR, PLAIN_COLOUR, SERVICE_COLOUR = "#6c8ebf", "#c9c9c9", "#7a1fa2"

Found = dict[str, Any]


def load() -> Found:
    """Read the last committed run."""
    found: Found = json.loads(RESULTS.read_text())
    return found


def write(found: Found) -> None:
    """Write all that is told of a run."""
    write_json(RESULTS, found)
    RESULTS.with_suffix(".md").write_text(f"{page(found)}\n")
    draw(found)
    write_readme({"bench": summary(found)})
    print(summary(found))


def values(
    found: Found,
    name: str,
    key: str,
    clients: int,
    size: str = SMALL,
    images: int = 1,
    form: bool = False,
) -> list[Any]:
    """Return a figure of a server under a load, round by round."""
    wanted = {"size": size, "clients": clients, "images": images, "form": form}
    rows = found["servers"][name]["loads"]
    return [row[key] for row in rows if wanted.items() <= row.items()]


def median(found: Found, name: str, key: str, clients: int, **load: Any) -> float:
    return float(np.median(values(found, name, key, clients, **load)))


def speed(found: Found, name: str, clients: int, **load: Any) -> float:
    """Return the median of images a second."""
    return median(found, name, "images_a_second", clients, **load)


def cpu_microseconds(found: Found, name: str, clients: int, kind: str = "") -> float:
    """Return the median of what an image costs, of one kind of a server's processes or of all."""
    rows = values(found, name, "cpu_microseconds", clients)
    return float(np.median([row.get(kind, 0) if kind else sum(row.values()) for row in rows]))


def ratios(found: Found, other: str, clients: int) -> list[float]:
    """Return how many times as many images a second this deployment answers, round by round."""
    ours, theirs = (
        values(found, name, "images_a_second", clients) for name in (SERVICE.name, other)
    )
    return [one / another for one, another in zip(ours, theirs, strict=True)]


def shares(found: Found, clients: int, **load: Any) -> list[float]:
    """Return what part of the limit this deployment reaches, round by round."""
    ours = values(found, SERVICE.name, "images_a_second", clients, **load)
    return [one / each[SMALL]["work"] for one, each in zip(ours, found["limit"], strict=True)]


def best_peer(found: Found, clients: int) -> str:
    """Return the fastest of the peers with our kernel inside."""
    names = [f"{name}-ours" for name in PEER_NAMES if f"{name}-ours" in found["servers"]]
    return max(names, key=lambda name: speed(found, name, clients))


def limit(found: Found, kind: str, size: str = SMALL) -> float:
    """Return the median of what the machine can do without a server."""
    return float(np.median([each[size][kind] for each in found["limit"]]))


def failures(found: Found) -> int:
    """Return how many requests failed, of all servers."""
    return sum(row["failed"] for each in found["servers"].values() for row in each["loads"])


def quick_choice(servers: Iterable[Server]) -> list[Server]:
    """Return the servers that a quick look compares: this one, and two it is measured by."""
    return [each for each in servers if each.name in (SERVICE.name, STOCK, "fastapi-ours")]


def against(found: Found, last: Found) -> str:
    """Return how the ratios of a quick run compare with those of the last committed one."""
    lines = [f"{'':40}{'now':>9}{'then':>9}{'rounds then':>18}{'change':>9}"]
    for title, of in (
        ("against FastAPI with our kernel", lambda run, n: ratios(run, "fastapi-ours", n)),
        ("against TorchServe as it comes", lambda run, n: ratios(run, STOCK, n)),
        ("share of the limit", shares),
    ):
        for clients in CLIENTS:
            now, then = np.median(of(found, clients)), of(last, clients)
            what, spread = f"{title}, {_clients(clients)}", f"{min(then):.2f} to {max(then):.2f}"
            change = now / np.median(then) - 1
            lines.append(f"{what:40}{now:9.2f}{np.median(then):9.2f}{spread:>18}{change:+9.0%}")
    lines.append("What lies within the rounds of then is noise.")
    return "\n".join(lines)


def summary(found: Found) -> str:
    """Return what the README tells: ratios, shares of the limit, and what it costs."""
    cost = _cost(found, SERVICE.name)
    rows = [
        (
            f"{_clients(clients)}, against {_title(best)} with our kernel, the best of the peers",
            _spread(ratios(found, best, clients), ".2f", " times"),
        )
        for clients, best in ((clients, best_peer(found, clients)) for clients in CLIENTS)
    ]
    rows += [
        (
            "64 clients, against TorchServe as it comes",
            _spread(ratios(found, STOCK, 64), ".1f", " times"),
        ),
        (
            "the same, told to have one thread a worker",
            _spread(ratios(found, STOCK_BOUND, 64), ".1f", " times"),
        ),
        (
            "64 clients, against Flask on gunicorn, the seed's way",
            _spread(ratios(found, SEED, 64), ".1f", " times"),
        ),
        (
            "64 clients, of what the machine can do without a server",
            _spread(shares(found, 64), ".0%"),
        ),
        (
            "the same with 16 images a request, in JSON",
            _spread(shares(found, 64, images=16), ".0%"),
        ),
        ("the same in a form", _spread(shares(found, 64, images=16, form=True), ".0%")),
        (
            "a lone client: half of the answers, and 99 of 100, within",
            f"{median(found, SERVICE.name, 'p50', 1):.2f} ms, "
            f"{median(found, SERVICE.name, 'p99', 1):.2f} ms",
        ),
        ("from start to ready, the page too", f"{cost['seconds']:.1f} s"),
        (
            "memory of a worker, and of Java",
            f"{cost['megabytes']['worker']:.0f} MB, {cost['megabytes']['java']:.0f} MB",
        ),
    ]
    about = found["machine"]
    return "\n".join(
        [
            "| images a second, and what they cost | |",
            "|---|---|",
            *(f"| {what} | {figure} |" for what, figure in rows),
            "",
            f"{found['date']}, {about['cores']} cores ({about['processor']}), which wrk has, too; "
            f"version 1.0, images of TEST; medians of {found['rounds']} rounds (least to most).",
        ]
    )


def page(found: Found) -> str:
    """Return all figures as Markdown."""
    parts = [
        "# This deployment beside its peers",
        "Written by `make bench`. Version 1.0 on each server, two processes each; images a second, "
        f"median of {found['rounds']} rounds (least to most). *plain*: Pillow decodes all pixels, "
        "torch runs the network eagerly. *ours*: the handler's decoding, gate, engine and verdict.",
        f"Requests that failed, of all servers: {failures(found)}.",
        summary(found),
    ]
    for size in SIZES:
        parts += [f"## Images of {size}", _speeds(found, size)]
    parts += ["## A lone client", _lone(found), "## What it costs", _costs(found)]
    parts += [
        "## The limit",
        "Images a second on all cores without a server: *work* is to decode, to scale and to run "
        "the network in batches of 16; *answers* is all that the handler does.",
        _rows(
            ("image", "work", "answers"),
            [
                (size, *(f"{limit(found, kind, size):,.0f}" for kind in ("work", "answers")))
                for size in SIZES
            ],
        ),
        "## Where the time of an image goes",
        "At 64 clients, 320x240: microseconds of one of the cores, which all are busy. The steps "
        "are those of the limit, each alone on all cores, in batches of 16.",
        _profile(found),
        "## How cost grows",
        "Of more than 128 requests that wait, one more is refused (`jobQueueSize` of the version's "
        "`model-config.yaml`). Each row is one load of three seconds: a third more or less may be "
        "chance.",
        "![throughput and 99th percentile](bench.png)",
    ]
    for name, rows in found["growth"].items():
        parts.append(
            _rows(
                (name, "images a second", "p50, ms", "p99, ms", "failed"),
                [
                    (
                        f"{row['amount']:g}",
                        f"{row['images_a_second']:,.0f}",
                        # A refusal is quick: it would make the rest look so.
                        *("" if row["failed"] else f"{row[key]:.1f}" for key in ("p50", "p99")),
                        str(row["failed"]),
                    )
                    for row in rows
                ],
            )
        )
    return "\n\n".join(parts)


def draw(found: Found) -> None:
    """Plot the servers side by side, and how this one's cost grows."""
    figure = plt.figure(figsize=(12, 8.5), layout="constrained")
    grid = figure.add_gridspec(2, 3)
    _draw_servers(figure.add_subplot(grid[0, :]), found)
    for place, (name, rows) in enumerate(found["growth"].items()):
        _draw_growth(figure.add_subplot(grid[1, place]), name, rows)
    figure.savefig(RESULTS.with_suffix(".png"), dpi=100)
    plt.close(figure)


def _draw_servers(axes: Any, found: Found) -> None:
    names = [each.name for each in SERVERS if each.name in found["servers"]]
    names.sort(key=lambda name: -speed(found, name, 64))
    places = np.arange(len(names))
    for offset, clients in zip((-0.27, 0, 0.27), (1, 16, 64), strict=True):
        every = [values(found, name, "images_a_second", clients) for name in names]
        middle = np.array([np.median(each) for each in every])
        spread = [middle - [min(e) for e in every], [max(e) for e in every] - middle]
        colours = [_colour(name) for name in names]
        axes.bar(
            places + offset,
            middle,
            0.25,
            yerr=spread,
            color=colours,
            alpha={1: 0.45, 16: 0.7, 64: 1.0}[clients],
            error_kw={"lw": 0.8},
        )
    axes.axhline(limit(found, "work"), color="black", lw=1, ls="--")
    axes.text(len(names) - 0.5, limit(found, "work"), "the limit ", ha="right", va="bottom")
    axes.set_xticks(places, [textwrap.fill(_label(name), 16) for name in names], fontsize=8)
    axes.set_ylabel("images a second")
    axes.set_title(
        "1, 16, 64 clients (light to dark); violet: this deployment, blue: our kernel, grey: plain"
    )


def _draw_growth(axes: Any, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    amounts = [row["amount"] for row in rows]
    axes.plot(
        amounts, [row["images_a_second"] for row in rows], color=SERVICE_COLOUR, marker="o", ms=3
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(name)
    axes.set_ylabel("images a second", color=SERVICE_COLOUR)
    axes.set_xticks(amounts, [f"{amount:g}" for amount in amounts], fontsize=8)
    axes.minorticks_off()
    late = axes.twinx()
    p99 = [None if row["failed"] else row["p99"] for row in rows]
    late.plot(amounts, np.array(p99, float), color="#d8322c", marker="s", ms=3)
    late.set_yscale("log")
    late.set_ylabel("99th percentile, ms", color="#d8322c")


def _speeds(found: Found, size: str) -> str:
    heads = ["server", *map(_clients, CLIENTS)]
    rows = []
    for server in _present(found):
        cells = []
        for clients in CLIENTS:
            seen = values(found, server.name, "images_a_second", clients, size)
            cells.append(f"{np.median(seen):,.0f} ({min(seen):,.0f} to {max(seen):,.0f})")
        rows.append((_label(server.name).replace("\n", ", "), *cells))
    return _rows(heads, rows)


def _lone(found: Found) -> str:
    return _rows(
        ("server", "p50, ms", "p99, ms"),
        [
            (
                _label(server.name).replace("\n", ", "),
                *(f"{median(found, server.name, key, 1):.2f}" for key in ("p50", "p99")),
            )
            for server in _present(found)
        ],
    )


def _costs(found: Found) -> str:
    heads = ("server", "start, s", "memory, MB", "images a CPU second", "installed, MB", "answers")
    rows = []
    for server in _present(found):
        cost = _cost(found, server.name)
        name = server.name.partition("-")[0]
        installed = found["sizes"].get(name, found["sizes"]["environment"])
        difference = found["servers"][server.name]["differences"]
        rows.append(
            (
                _label(server.name).replace("\n", ", "),
                f"{cost['seconds']:.1f}",
                f"{cost['in_all']:,.0f}",
                f"{1e6 / cpu_microseconds(found, server.name, 64):,.0f}",
                f"{installed:,.0f}",
                f"differ by {difference:.0e}" if difference else "the same",
            )
        )
    table = _rows(heads, rows)
    return (
        f"{table}\n\nThe archive has {found['sizes']['archive']:.1f} MB. Start is to the first "
        "answer, for this deployment with its page; memory is what is left of shared parts, after "
        "the loads; what is installed of this deployment and TorchServe includes what tests need."
    )


def _profile(found: Found) -> str:
    cores = found["machine"]["cores"]
    whole = cores * 1e6 / speed(found, SERVICE.name, 64)
    worker, java = (cpu_microseconds(found, SERVICE.name, 64, kind) for kind in ("worker", "java"))
    steps = {kind: cores * 1e6 / limit(found, kind) for kind in ("decode", "network", "gate")}
    rows = [
        ("the workers", worker),
        *((f"- {kind}", cost) for kind, cost in steps.items()),
        ("- messages, the answer, Python", worker - sum(steps.values())),
        ("Java", java),
        ("the load, the page, the system", whole - worker - java),
        ("in all", whole),
    ]
    return _rows(
        ("what", "µs", "share"),
        [(what, f"{cost:,.0f}", f"{cost / whole:.0%}") for what, cost in rows],
    )


def _cost(found: Found, name: str) -> dict[str, Any]:
    starts = found["servers"][name]["starts"]
    kinds = {kind for start in starts for kind in start["megabytes"]}
    return {
        "seconds": float(np.median([start["seconds"] for start in starts])),
        "in_all": float(np.median([start["megabytes_in_all"] for start in starts])),
        "megabytes": {
            kind: float(np.median([start["megabytes"].get(kind, 0) for start in starts]))
            for kind in kinds
        },
    }


def _present(found: Found) -> list[Server]:
    return [server for server in SERVERS if server.name in found["servers"]]


def _title(name: str) -> str:
    return next(server.title for server in SERVERS if server.name == name)


def _label(name: str) -> str:
    if name in (SERVICE.name, STOCK, STOCK_BOUND):
        return _title(name)
    return f"{_title(name)}\n{name.partition('-')[2]}"


def _colour(name: str) -> str:
    if name == SERVICE.name:
        return SERVICE_COLOUR
    return OURS_COLOUR if name.endswith("-ours") else PLAIN_COLOUR


def _spread(figures: Sequence[float], form: str, unit: str = "") -> str:
    return f"{np.median(figures):{form}}{unit} ({min(figures):{form}} to {max(figures):{form}})"


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


def _rows(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(heads), "|".join(["---"] * len(heads)), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)
