"""Measure the page in a browser: 100 images at once, memory, first load: `make page`.

Needs the images and Chromium. Writes benchmarks/results/page.{json,md}, and the table of
docs/performance.md.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import requests
from playwright.sync_api import Browser, sync_playwright
from tqdm import tqdm

from benchmarks import report
from benchmarks.report import PERFORMANCE, RESULTS, Document
from serving.client import InferenceClient
from testing import chromium
from testing.clients import page_session
from testing.service import Service, deployed
from training import data
from training.figures import write_readme

IMAGES, ROUNDS, REPEATS = 100, 10, 5
PARALLEL = 6
# `buffered` includes the shifts before this runs.
OBSERVE = """() => {
    window.shifts = [];
    new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) window.shifts.push(entry.value);
    }).observe({ type: "layout-shift", buffered: true });
}"""
LOADED = """() => {
    const entries = [
        ...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource"),
    ];
    const paint = performance.getEntriesByName("first-contentful-paint")[0];
    return {
        requests: entries.length,
        bytes: entries.reduce((sum, entry) => sum + entry.transferSize, 0),
        first_paint_ms: paint.startTime,
        layout_shift: window.shifts.reduce((sum, shift) => sum + shift, 0),
    };
}"""


def main() -> None:
    """Measure, and write the report."""
    program = chromium.find() or sys.exit(f"error: {chromium.MISSING}.")
    paths = sorted(data.image_folder(report.images_root(), "TEST").rglob("*.jpeg"))
    images = random.Random(0).sample(paths, IMAGES)
    options = ["--no-sandbox", "--disable-gpu"]
    with (
        tempfile.TemporaryDirectory() as scratch,
        deployed(Path(scratch)) as service,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=program, args=options)
        write(report.about() | measure(browser, service, images))


def measure(browser: Browser, service: Service, images: Sequence[Path]) -> Document:
    """Return every figure."""
    first_loads = [first_load(browser, service) for _ in range(REPEATS)]
    client, session = InferenceClient(service.settings), requests.Session()
    # The first images of a worker take longer.
    timed(client.predict, images[:20])
    direct = timed(client.predict, images)
    client.close()
    page_session(session, service.frontend_url)

    def upload(image: bytes) -> None:
        url = f"{service.frontend_url}/api/predictions"
        session.post(url, files={"image": image}, timeout=30).raise_for_status()

    uploaded = timed(upload, images, PARALLEL)
    at_once = [
        drop(browser, service, images)
        for _ in tqdm(range(REPEATS), desc="100 at once", unit="drop")
    ]
    process = page_process(service)
    memory = [process.memory_info().rss]
    for _ in tqdm(range(ROUNDS), desc="1,000 images", unit="drop"):
        drop(browser, service, images)
        memory.append(process.memory_info().rss)
    return {
        "images": len(images),
        "seconds": {
            "at_once": sorted(at_once),
            "together_without_browser": uploaded,
            "one_after_another_to_torchserve": direct,
        },
        "memory_mb": [round(each / 2**20, 1) for each in memory],
        "first_load": {
            name: statistics.median(each[name] for each in first_loads) for name in first_loads[0]
        },
    }


def first_load(browser: Browser, service: Service) -> dict[str, float]:
    """Return the cost of a first visit, with an empty cache and everything in view."""
    page = browser.new_context(viewport={"width": 1280, "height": 2000}).new_page()
    page.add_init_script(f"({OBSERVE})()")
    page.goto(service.frontend_url, wait_until="networkidle")
    found: dict[str, float] = page.evaluate(LOADED)
    page.context.close()
    return found


def timed(ask: Callable[[bytes], object], images: Sequence[Path], at_a_time: int = 1) -> float:
    """Return the seconds for all images."""
    with ThreadPoolExecutor(at_a_time) as pool:
        start = time.perf_counter()
        list(pool.map(lambda image: ask(image.read_bytes()), images))
        return time.perf_counter() - start


def drop(browser: Browser, service: Service, images: Sequence[Path]) -> float:
    """Drop all images on the page; return the seconds until all are counted."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.goto(service.frontend_url)
    start = time.perf_counter()
    page.set_input_files("#image", list(images))
    page.wait_for_selector(".workbench[aria-busy=false]", timeout=120_000)
    seconds = time.perf_counter() - start
    answered = page.locator(".answered").inner_text()
    if answered != f"{len(images)} of {len(images)} images analysed":
        raise AssertionError(answered)
    page.context.close()
    return seconds


def page_process(service: Service) -> psutil.Process:
    children = psutil.Process(service.process.pid).children(recursive=True)
    return next(child for child in children if "frontend" in child.cmdline())


def write(found: Document) -> None:
    """Write the report, and the table of docs/performance.md."""
    seconds, load, memory = found["seconds"], found["first_load"], found["memory_mb"]
    rows = [
        (
            "100 images dropped at once, until all are counted",
            report.spread(seconds["at_once"], ".2f", " s"),
        ),
        (
            "the same without a browser, six requests at a time",
            f"{seconds['together_without_browser']:.2f} s",
        ),
        (
            "the same to TorchServe, one after another",
            f"{seconds['one_after_another_to_torchserve']:.2f} s",
        ),
        ("memory of the page's process before 1,000 images", f"{memory[0]:.0f} MB"),
        ("after them", f"{memory[-1]:.0f} MB (at most {max(memory):.0f})"),
        ("first load", f"{load['bytes'] / 1000:.0f} kB in {load['requests']:.0f} requests"),
        ("first contentful paint", f"{load['first_paint_ms']:.0f} ms"),
        ("layout shift", f"{load['layout_shift']:g}"),
    ]
    table = report.table(("", ""), rows)
    heading = (
        f"Written by `make page`. {report.measured_on(found)}, which browser and service share."
    )
    report.write(RESULTS, "page", found, f"# The page, measured\n\n{heading}\n\n{table}")
    write_readme({"page": table}, PERFORMANCE)
    print(table)


if __name__ == "__main__":
    main()
