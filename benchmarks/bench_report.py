"""The report of `make bench`: mostly ratios, since absolute times depend on the machine."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from typing import Any

import matplotlib
import numpy as np

from benchmarks import report
from benchmarks.report import PERFORMANCE, RESULTS, Document, measured_on, spread, table
from benchmarks.servers import PEER_NAMES, SERVERS, SERVICE, Server
from training.figures import write_readme

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SIZES = SMALL, LARGE = "320x240", "640x480"
CLIENTS = (1, 4, 16, 64)
STOCK, STOCK_BOUND, ORIGINAL = "torchserve-plain", "torchserve-thread", "flask-plain"
OURS_COLOUR, PLAIN_COLOUR, SERVICE_COLOUR = "#6c8ebf", "#c9c9c9", "#7a1fa2"


def load() -> Document:
    """Read the last committed run."""
    found: Document = json.loads((RESULTS / "bench.json").read_text())
    return found


def write(found: Document) -> None:
    """Write the report, and the table of docs/performance.md."""
    report.write(RESULTS, "bench", found, page(found))
    draw(found)
    write_readme({"bench": summary(found)}, PERFORMANCE)
    print(summary(found))


def values(
    found: Document,
    name: str,
    key: str,
    clients: int,
    size: str = SMALL,
    images: int = 1,
    form: bool = False,
) -> list[Any]:
    """Return a figure of a server under a load, by round."""
    wanted = {"size": size, "clients": clients, "images": images, "form": form}
    rows = found["servers"][name]["loads"]
    return [row[key] for row in rows if wanted.items() <= row.items()]


def median(found: Document, name: str, key: str, clients: int, **load: Any) -> float:
    return float(np.median(values(found, name, key, clients, **load)))


def cpu_microseconds(found: Document, name: str, clients: int, kind: str = "") -> float:
    """Return the median processor time of an image, of one kind of process or of all."""
    rows = values(found, name, "cpu_microseconds", clients)
    return float(np.median([row.get(kind, 0) if kind else sum(row.values()) for row in rows]))


def ratios(found: Document, other: str, clients: int) -> list[float]:
    """Return this deployment's images a second relative to another server's, by round."""
    names = (SERVICE.name, other)
    ours, theirs = (values(found, name, "images_a_second", clients) for name in names)
    return [one / another for one, another in zip(ours, theirs, strict=True)]


def shares(found: Document, clients: int, **load: Any) -> list[float]:
    """Return this deployment's share of the machine's limit, by round."""
    ours = values(found, SERVICE.name, "images_a_second", clients, **load)
    return [one / each[SMALL]["work"] for one, each in zip(ours, found["limit"], strict=True)]


def best_peer(found: Document, clients: int) -> str:
    """Return the fastest peer with our kernel."""
    names = [f"{name}-ours" for name in PEER_NAMES if f"{name}-ours" in found["servers"]]
    return max(names, key=lambda name: median(found, name, "images_a_second", clients))


def limit(found: Document, kind: str, size: str = SMALL) -> float:
    """Return the median of what the machine can do without a server."""
    return float(np.median([each[size][kind] for each in found["limit"]]))


def failures(found: Document) -> int:
    """Return the number of failed requests, of all servers."""
    return sum(row["failed"] for each in found["servers"].values() for row in each["loads"])


def quick_choice(servers: Iterable[Server]) -> list[Server]:
    return [each for each in servers if each.name in (SERVICE.name, STOCK, "fastapi-ours")]


def against(found: Document, last: Document) -> str:
    """Return the ratios of a quick run beside those of the last committed run."""
    lines = [f"{'':40}{'now':>9}{'then':>9}{'rounds then':>18}{'change':>9}"]
    for title, of in (
        ("against FastAPI with our kernel", lambda run, n: ratios(run, "fastapi-ours", n)),
        ("against default TorchServe", lambda run, n: ratios(run, STOCK, n)),
        ("share of the limit", shares),
    ):
        for clients in CLIENTS:
            now, then = np.median(of(found, clients)), of(last, clients)
            what, range_ = f"{title}, {_clients(clients)}", f"{min(then):.2f} to {max(then):.2f}"
            change = now / np.median(then) - 1
            lines.append(f"{what:40}{now:9.2f}{np.median(then):9.2f}{range_:>18}{change:+9.0%}")
    lines.append("A value within the range of the committed run is noise.")
    return "\n".join(lines)


def summary(found: Document) -> str:
    """Return the table of docs/performance.md."""

    def times(other: str, clients: int = 64, form: str = ".1f") -> str:
        return spread(ratios(found, other, clients), form, " times")

    def share(**load: Any) -> str:
        return spread(shares(found, 64, **load), ".0%")

    rows = []
    for clients in CLIENTS:
        best = best_peer(found, clients)
        title = next(server.title for server in SERVERS if server.name == best)
        what = f"{_clients(clients)}, against the fastest peer with our kernel ({title})"
        rows.append((what, times(best, clients, ".2f")))
    p50, p99 = (median(found, SERVICE.name, key, 1) for key in ("p50", "p99"))
    memory = [_start(found, SERVICE.name, kind) for kind in ("worker", "java")]
    rows += [
        ("64 clients, against TorchServe with default settings", times(STOCK)),
        ("64 clients, against TorchServe with one thread a worker", times(STOCK_BOUND)),
        ("64 clients, against Flask on gunicorn, as in the original project", times(ORIGINAL)),
        ("64 clients, share of what the machine can do without a server", share()),
        ("64 clients, 16 images a request as JSON, share of the same", share(images=16)),
        ("64 clients, 16 images a request as a form, share", share(images=16, form=True)),
        ("1 client, median and 99th percentile", f"{p50:.2f} ms, {p99:.2f} ms"),
        ("start to ready, with the page", f"{_start(found, SERVICE.name, 'seconds'):.1f} s"),
        ("memory of a worker, and of Java", f"{memory[0]:.0f} MB, {memory[1]:.0f} MB"),
    ]
    return (
        f"{table(('images a second, and costs', ''), rows)}\n\n"
        f"{measured_on(found)}, which servers and wrk share; version 1.0, images of TEST; medians "
        f"of {found['rounds']} rounds (least to most)."
    )


def page(found: Document) -> str:
    """Return all figures as Markdown."""
    parts = [
        "# This deployment beside its peers",
        "Written by `make bench`. Version 1.0 on each server, two processes each; images a second, "
        f"median of {found['rounds']} rounds (least to most). *plain*: Pillow decodes all pixels, "
        "torch runs the network eagerly. *ours*: the handler's decoding, engine and verdict.",
        f"Failed requests, of all servers: {failures(found)}.",
        summary(found),
        "![images a second of each server](bench.png)",
    ]
    for size in SIZES:
        parts += [f"## Images of {size}", _speeds(found, size)]
    works = [
        (size, *(f"{limit(found, kind, size):,.0f}" for kind in ("work", "answers")))
        for size in SIZES
    ]
    parts += [
        "## Costs",
        _costs(found),
        "## The limit",
        "Images a second on all cores without a server: *work* is to decode, to scale and to run "
        "the network in batches of 16; *answers* is all that the handler does.",
        table(("image", "work", "answers"), works),
        "## Where the time of an image goes",
        "At 64 clients, 320x240: microseconds of one core, while all are busy. The steps are those "
        "of the limit, each alone on all cores, in batches of 16.",
        _profile(found),
    ]
    return "\n\n".join(parts)


def draw(found: Document) -> None:
    """Plot the servers side by side."""
    figure, axes = plt.subplots(figsize=(12, 4.5), layout="constrained")
    servers = sorted(
        _present(found), key=lambda server: -median(found, server.name, "images_a_second", 64)
    )
    places = np.arange(len(servers))
    for offset, clients, alpha in ((-0.27, 1, 0.45), (0, 16, 0.7), (0.27, 64, 1.0)):
        every = [values(found, each.name, "images_a_second", clients) for each in servers]
        middle = np.array([np.median(each) for each in every])
        error = [middle - [min(e) for e in every], [max(e) for e in every] - middle]
        how: Any = {"color": [_colour(each) for each in servers], "alpha": alpha}
        axes.bar(places + offset, middle, 0.25, yerr=error, error_kw={"lw": 0.8}, **how)
    axes.axhline(limit(found, "work"), color="black", lw=1, ls="--")
    axes.text(len(servers) - 0.5, limit(found, "work"), "the limit ", ha="right", va="bottom")
    axes.set_xticks(places, [textwrap.fill(each.title, 16) for each in servers], fontsize=8)
    axes.set_ylabel("images a second")
    axes.set_title(
        "1, 16, 64 clients (light to dark); violet: this deployment, blue: our kernel, grey: plain"
    )
    figure.savefig(RESULTS / "bench.png", dpi=100)
    plt.close(figure)


def _speeds(found: Document, size: str) -> str:
    rows = []
    for server in _present(found):
        seen = [values(found, server.name, "images_a_second", n, size) for n in CLIENTS]
        rows.append((server.title, *(spread(each, ",.0f") for each in seen)))
    return table(["server", *map(_clients, CLIENTS)], rows)


def _costs(found: Document) -> str:
    heads = ("server", "1 client, p50, ms", "p99, ms", "start, s", "memory, MB")
    rows = []
    for server in _present(found):
        name = server.name
        row = [server.title, *(f"{median(found, name, key, 1):.2f}" for key in ("p50", "p99"))]
        row += [
            f"{_start(found, name, 'seconds'):.1f}",
            f"{_start(found, name, 'megabytes_in_all'):,.0f}",
        ]
        row.append(f"{1e6 / cpu_microseconds(found, name, 64):,.0f}")
        rows.append((*row, f"{found['servers'][name]['differences']:.0e}"))
    return (
        f"{table((*heads, 'images a CPU second', 'answers differ by'), rows)}\n\nA start ends with "
        "the first answer, for this deployment with its page. Memory is PSS, after the loads."
    )


def _profile(found: Document) -> str:
    cores = found["machine"]["cores"]
    whole = cores * 1e6 / median(found, SERVICE.name, "images_a_second", 64)
    worker, java = (cpu_microseconds(found, SERVICE.name, 64, kind) for kind in ("worker", "java"))
    kinds = [kind for kind in found["limit"][0][SMALL] if kind not in ("work", "answers")]
    steps = {kind: cores * 1e6 / limit(found, kind) for kind in kinds}
    rows = [
        ("the workers", worker),
        *((f"- {kind}", cost) for kind, cost in steps.items()),
        ("- messages, the answer, Python", worker - sum(steps.values())),
        ("Java", java),
        ("the load, the page, the system", whole - worker - java),
        ("in all", whole),
    ]
    cells = [(what, f"{cost:,.0f}", f"{cost / whole:.0%}") for what, cost in rows]
    return table(("what", "µs", "share"), cells)


def _start(found: Document, name: str, kind: str) -> float:
    """Return the median seconds of a start, or MB of a kind's largest process or of all."""
    starts = found["servers"][name]["starts"]
    if kind in ("seconds", "megabytes_in_all"):
        return float(np.median([start[kind] for start in starts]))
    return float(np.median([start["megabytes"].get(kind, 0) for start in starts]))


def _present(found: Document) -> list[Server]:
    return [server for server in SERVERS if server.name in found["servers"]]


def _colour(server: Server) -> str:
    if server is SERVICE:
        return SERVICE_COLOUR
    return OURS_COLOUR if server.kernel == "ours" else PLAIN_COLOUR


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"
