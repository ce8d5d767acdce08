"""The page measured in a real browser: a hundred images at once, its memory, its first load.

    make page       needs the images (BLOOD_CELLS_DATA) and Chromium

It starts a service of its own and writes benchmarks/results/page.{json,md} and
the README's table.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import requests
from playwright.sync_api import Browser, Page, sync_playwright
from tqdm import tqdm

from serving.client import InferenceClient
from serving.settings import ROOT
from testing import chromium
from testing.clients import page_session
from testing.service import Service, deployed
from training import data
from training.report import write_readme

RESULTS = ROOT / "benchmarks" / "results" / "page"
IMAGES, ROUNDS, REPEATS = 100, 10, 5
# As the page asks.
PARALLEL = 6
MEBIBYTE = 1024 * 1024
# Both are written down as the page goes on; `buffered` also gives what was before.
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


ONE_AFTER_ANOTHER = """async (files) => {
    const token = document.getElementsByName("csrf_token")[0].value;
    const images = files.map((file) => Uint8Array.from(atob(file), (byte) => byte.charCodeAt(0)));
    const start = performance.now();
    for (const image of images) {
        const body = new FormData();
        body.set("image", new File([image], "image.jpeg"));
        const headers = { "X-CSRFToken": token };
        const response = await fetch("/api/predictions", { method: "POST", body, headers });
        if (!response.ok) throw new Error(response.status);
        await response.json();
    }
    return (performance.now() - start) / 1000;
}"""


def main() -> int:
    """Measure, write the results, and return the exit code."""
    program = chromium.find()
    if not program:
        print(f"error: {chromium.MISSING}.", file=sys.stderr)
        return 1
    try:
        images = choose_images(data.data_root())
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with (
        tempfile.TemporaryDirectory() as scratch,
        deployed(Path(scratch)) as service,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        found = measure(browser, service, images)
    write(found)
    return 0


def choose_images(root: Path) -> list[Path]:
    """Choose TEST images of all classes, the same each time."""
    paths = sorted(data.image_folder(root, "TEST").rglob("*.jpeg"))
    return random.Random(0).sample(paths, IMAGES)


def measure(browser: Browser, service: Service, images: Sequence[Path]) -> dict[str, Any]:
    """Return every figure."""
    first_loads = [first_load(browser, service) for _ in range(REPEATS)]
    warm_up(service, images)
    page = open_page(browser, service)
    single = one_after_another(service, images)
    alone, together = (through_page(service, images, at_a_time) for at_a_time in (1, PARALLEL))
    in_browser = one_after_another_in_browser(page, images)
    at_once = [drop(page, images) for _ in tqdm(range(REPEATS), desc="100 at once", unit="drop")]
    process = page_process(service)
    before = process.memory_info().rss
    memory = [before / MEBIBYTE]
    for _ in tqdm(range(ROUNDS), desc="1,000 images", unit="drop"):
        drop(page, images)
        memory.append(process.memory_info().rss / MEBIBYTE)
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "images": len(images),
        "seconds": {
            "at_once": sorted(at_once),
            "one_after_another_in_browser": in_browser,
            "together_without_browser": together,
            "one_after_another_through_page": alone,
            "one_after_another_to_torchserve": single,
        },
        "memory_mb": [round(each, 1) for each in memory],
        "first_load": {
            name: statistics.median(each[name] for each in first_loads) for name in first_loads[0]
        },
    }


def open_page(browser: Browser, service: Service) -> Page:
    """Open the page in a profile of its own."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.goto(service.frontend_url)
    return page


def first_load(browser: Browser, service: Service) -> dict[str, float]:
    """Return what a first visit costs, with nothing cached; all that lies below is loaded, too."""
    page = browser.new_context(viewport={"width": 1280, "height": 2000}).new_page()
    page.add_init_script(f"({OBSERVE})()")
    page.goto(service.frontend_url, wait_until="networkidle")
    found: dict[str, float] = page.evaluate(LOADED)
    page.context.close()
    return found


def drop(page: Page, images: Sequence[Path]) -> float:
    """Hand all images to the page at once; return the seconds until all are counted."""
    page.reload()
    start = time.perf_counter()
    page.set_input_files("#image", list(images))
    page.wait_for_selector(".workbench:not([hidden])")
    page.wait_for_selector("[data-do=cancel]", state="hidden", timeout=120_000)
    seconds = time.perf_counter() - start
    answered = page.locator(".answered").inner_text()
    if answered != f"Answered: {len(images)} of {len(images)}":
        raise AssertionError(answered)
    return seconds


def warm_up(service: Service, images: Sequence[Path]) -> None:
    """Ask some images first: a worker's first ones are slower."""
    client = InferenceClient(service.settings)
    for image in images[:20]:
        client.predict(image.read_bytes())
    client.close()


def one_after_another(service: Service, images: Sequence[Path]) -> float:
    """Return the seconds of single requests to TorchServe."""
    client = InferenceClient(service.settings)
    start = time.perf_counter()
    for image in tqdm(images, desc="one after another", unit="image"):
        client.predict(image.read_bytes())
    seconds = time.perf_counter() - start
    client.close()
    return seconds


def through_page(service: Service, images: Sequence[Path], at_a_time: int) -> float:
    """Return the seconds of requests to the page's server, without a browser."""
    url = service.frontend_url
    with page_session(requests.Session(), url) as session, ThreadPoolExecutor(at_a_time) as pool:

        def ask(image: Path) -> None:
            response = session.post(
                f"{url}/api/predictions", files={"image": image.read_bytes()}, timeout=30
            )
            response.raise_for_status()

        start = time.perf_counter()
        list(tqdm(pool.map(ask, images), f"through the page, {at_a_time} at a time", len(images)))
        return time.perf_counter() - start


def one_after_another_in_browser(page: Page, images: Sequence[Path]) -> float:
    """Return the seconds of single requests of the browser, which shows nothing of them."""
    files = [b64encode(image.read_bytes()).decode() for image in images]
    seconds: float = page.evaluate(ONE_AFTER_ANOTHER, files)
    return seconds


def page_process(service: Service) -> psutil.Process:
    """Return the process that serves the page."""
    children = psutil.Process(service.process.pid).children(recursive=True)
    return next(child for child in children if "frontend" in child.cmdline())


def write(found: dict[str, Any]) -> None:
    """Write the figures, and a table of them."""
    RESULTS.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")
    seconds, load, memory = found["seconds"], found["first_load"], found["memory_mb"]
    middle = statistics.median(seconds["at_once"])
    rows = [
        (
            "100 images dropped at once, until all are counted",
            f"{middle:.2f} s ({min(seconds['at_once']):.2f} to {max(seconds['at_once']):.2f})",
        ),
        (
            "the same in the browser, one request after another, nothing shown",
            f"{seconds['one_after_another_in_browser']:.2f} s",
        ),
        (
            "the same without a browser, six requests at a time",
            f"{seconds['together_without_browser']:.2f} s",
        ),
        (
            "the same, one request after another through the page's server",
            f"{seconds['one_after_another_through_page']:.2f} s",
        ),
        (
            "the same, one request after another to TorchServe",
            f"{seconds['one_after_another_to_torchserve']:.2f} s",
        ),
        ("memory of the page's process before 1,000 images", f"{memory[0]:.0f} MB"),
        ("after them", f"{memory[-1]:.0f} MB (at most {max(memory):.0f})"),
        ("first load", f"{load['bytes'] / 1000:.0f} kB in {load['requests']:.0f} requests"),
        ("first contentful paint", f"{load['first_paint_ms']:.0f} ms"),
        ("layout shift", f"{load['layout_shift']:g}"),
    ]
    lines = [f"| {what} | {figure} |" for what, figure in rows]
    table = "\n".join(["| | |", "|---|---|", *lines])
    heading = f"Written by `make page`, on {found['machine']}; browser and service share them."
    RESULTS.with_suffix(".md").write_text(f"# The page, measured\n\n{heading}\n\n{table}\n")
    write_readme({"page": table})
    print(table)


if __name__ == "__main__":
    sys.exit(main())
