"""What one client can cost: attacks on the edge and on the disk, as steps of `make chaos`.

The attacker has another address, or another key, than the clients of the edge, none of whose
requests may fail. SECURITY.md has the bound that each attack meets.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TYPE_CHECKING

import psutil
from PIL import Image

from benchmarks import rig
from benchmarks.outcome import Result, Step
from benchmarks.rig import OTHER
from handler.bounds import JPEG_COST, MAX_COST, SCAN_COST
from serving.http import local_session
from serving.settings import MODEL
from testing import connections, formats
from testing.clients import page_session
from testing.connections import Call
from testing.hostile import Upload

if TYPE_CHECKING:
    from benchmarks.chaos import Chaos

# Of the attacker, who has no other.
ADDRESS = "127.0.0.2"
SECONDS = 15.0
# So short that clients, who wait for 15 s, lose nothing.
FULL_SECONDS = 3.0
AT_ONCE, CONNECTIONS, REFUSED = 20, 10_000, 2_100
# What TorchServe held when it was killed.
LOST = {"direct": 6}
PROGRAM, PAGE = f"/predictions/{MODEL}", "/api/predictions"
# Megabytes of all files of the edge's log.
MOST_LOG = 61
SIDE = 5_477
PROGRESSIVE = {"progressive": True, "subsampling": 0}
LARGE = Upload("large", bytes(4_000_000))


def steps() -> list[Step]:
    return [
        Step(f"the most expensive image, {AT_ONCE} at once with one key", partial(repeat, PROGRAM)),
        Step(f"the most expensive image, {AT_ONCE} at once to the page", partial(repeat, PAGE)),
        Step("5 s of paths of 7,500 characters, without a key", flood_log),
        Step("12 uploads to the page that drip", partial(drip, PAGE, 12)),
        Step("28 requests with one key that drip", partial(drip, PROGRAM, 28)),
        Step(f"{REFUSED:,} refused requests that stay open", partial(hold, REFUSED, refused=True)),
        Step(f"{CONNECTIONS:,} connections that stay open", partial(hold, CONNECTIONS)),
        Step("kill -9 of nginx's master", kill_edge, {"clients": 100}),
        Step("a worker stopped by SIGSTOP, and scaled down", stop_worker, workers_may_end=True),
        Step(
            "kill -9 of TorchServe during a healthy canary",
            kill_java_in_canary,
            {"direct": 6},
            True,
        ),
        Step("RUN_DIR full, tokens renewed", fill_run_dir),
        Step("RUN_DIR full, kill -9 of TorchServe", kill_java_on_full_disk, LOST, True),
    ]


@cache
def most_expensive() -> Upload:
    """Return a progressive JPEG that costs as much as one may."""
    flat = formats.encoded(Image.new("RGB", (SIDE, SIDE), "pink"), "JPEG", **PROGRESSIVE)
    scans = (MAX_COST // SIDE**2 - JPEG_COST) // SCAN_COST
    return Upload("the most expensive", formats.with_scans(flat, scans))


def request(it: Chaos, upload: Upload, path: str, attacker: bool = False) -> Call:
    """Return a request to the edge, of a program or of the page."""
    source = ADDRESS if attacker else None
    if path == PROGRAM:
        return it.to_edge(upload, path, it.attacker_key if attacker else it.key, source)
    with local_session() as session:
        session.verify = str(it.edge.certificate)
        page_session(session, it.edge.url)
        cookies = "; ".join(f"{each.name}={each.value}" for each in session.cookies)
        headers = {name: str(session.headers[name]) for name in ("Referer", "X-CSRFToken")}
    kind, body = connections.in_form([upload.body])
    headers |= {"Content-Type": kind, "Cookie": cookies}
    return Call(it.edge.url + path, body, headers, it.edge.certificate, source)


def repeat(path: str, it: Chaos, result: Result) -> None:
    """Send an image on several connections, each again when it is answered."""
    call, ends = request(it, most_expensive(), path, attacker=True), time.time() + SECONDS

    def ask(_: int) -> Counter[str]:
        said = Counter[str]()
        while time.time() < ends:
            said[last := connections.once(call)] += 1
            if last == "429":
                # Otherwise most of the cost would be the TLS handshakes of this client, on the same
                # cores. The firewall limits these (docs/edge.md).
                time.sleep(1)
        return said

    with ThreadPoolExecutor(AT_ONCE) as pool:
        result.sent = sum(pool.map(ask, range(AT_ONCE)), Counter[str]())
    result.expect(result.sent["200"] > 0, "no image was answered")
    # 503 and 429: the attacker's own requests were put off for too long.
    result.expect_sent("200", "429", "503")


def flood_log(it: Chaos, result: Result) -> None:
    """Send what the log would have to escape."""
    command = ["wrk", "-t2", "-c32", "-d5s", f"{it.edge.url}/{'%01' * 2_500}"]
    subprocess.run(command, capture_output=True, check=True)
    written = sum(path.stat().st_size for path in it.logs.glob("edge*.log")) / 1e6
    result.notes["MB in the edge's log"] = written
    result.expect(written <= MOST_LOG, f"{written:.0f} MB were logged")


def drip(path: str, count: int, it: Chaos, result: Result) -> None:
    """Hold uploads with a few bytes now and then; another address sends a large one meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        dripping = pool.submit(
            connections.slow, request(it, LARGE, path, attacker=True), count, SECONDS
        )
        time.sleep(2)
        said = connections.once(request(it, LARGE, path))
        # It is no image, but it was read.
        result.expect(said == "415", f"a large upload of another client: {said}")
        result.sent = dripping.result()
    result.expect_sent("let go", "closed", "408", "429")


def hold(count: int, it: Chaos, result: Result, refused: bool = False) -> None:
    """Keep connections open: silent ones, or those of requests without a key."""
    call = request(it, LARGE, PROGRAM, attacker=True)
    head = call.head.replace(it.attacker_key.encode(), b"none") if refused else b""
    result.sent = connections.held(call, head, count, SECONDS)


def kill_edge(it: Chaos, result: Result) -> None:
    """Kill nginx's master; the edge starts another."""
    [master] = psutil.Process(it.edge.process.pid).children()
    master.kill()
    it.wait(result, "ready", lambda: connections.once(it.to_edge(it.good)) == "200")


def stop_worker(it: Chaos, result: Result) -> None:
    """Stop a worker, which may hold a request; scaling must refuse, as it can't be at rest."""
    stopped = it.ready_workers(OTHER)[0]
    os.kill(stopped, signal.SIGSTOP)
    try:
        it.change(result, "scale", OTHER, "--workers", "1", code=1)
    finally:
        os.kill(stopped, signal.SIGCONT)


def kill_java_in_canary(it: Chaos, result: Result) -> None:
    """Kill TorchServe while a canary without fault gets half of the clients."""
    it.change(result, "canary", OTHER, "--percent", "50")
    time.sleep(SECONDS)
    rig.kill_java(it, result)
    time.sleep(SECONDS)
    routed = it.routing.read()
    result.expect(routed is not None and routed.canary == OTHER, "the canary was rolled back")
    it.change(result, "rollback")


def fill_run_dir(it: Chaos, result: Result) -> None:
    """Renew the tokens on a full disk: programs that read TorchServe's file go on."""
    with it.full(it.settings.run_dir):
        it.change(result, "renew-tokens", code=1)
        for path in (PROGRAM, PAGE):
            said = connections.once(request(it, it.good, path))
            result.expect(said == "200", f"{path} answered {said}")


def kill_java_on_full_disk(it: Chaos, result: Result) -> None:
    """Kill TorchServe on a full disk: it starts again when there is room."""
    with it.restored(result):
        with it.full(it.settings.run_dir):
            next(each for each in it.process.children() if "java" in each.name()).kill()
            it.wait(result, "the end", lambda: it.routing.read() is None)
            time.sleep(FULL_SECONDS)
        it.wait(result, "ready", lambda: it.routing.read() is not None)
