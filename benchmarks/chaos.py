"""Inject faults under the load of users and of direct clients: `make chaos`.

Needs root (to fill a disk), nginx and libfaketime.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import requests

from benchmarks import attacks, engine, rig
from benchmarks.engine import Scenario
from benchmarks.outcome import Result, Step
from benchmarks.rig import DEFAULT, OTHER, PATIENCE, Rig
from handler.bounds import InputError
from handler.preprocessing import decode, within_field
from serving.edge.keys import MAY, KeyFile
from serving.edge.settings import keys_path
from serving.http import local_session
from serving.settings import MODEL
from testing import clock, connections, formats, hostile
from testing.clients import page_session
from testing.clock import Clock
from testing.connections import Call
from testing.hostile import Upload
from testing.service import run_edge

DIRECT, CLIENTS = 6, 6
DISKS = {"run": "96m", "run/logs": "80m"}
# Fewer clients leave than requests may wait: TorchServe still processes their requests.
FLOOD, SLOW, LEAVERS = 500, 100, 100
SLOW_SECONDS = 15.0
CLOCK_HOURS = 2
# Seconds within which the decoder must read any image.
SLOWEST = 20.0
# All that TorchServe holds when it is killed.
KILLS = {"direct": DIRECT}
GOOD = Upload("good", formats.encoded(hostile.sample(), "PNG"))
Send = Callable[[Upload], Call]


class Chaos(Rig):
    """A service with small disks, and an edge."""

    good = GOOD

    def __init__(self, folder: Path) -> None:
        for name, size in DISKS.items():
            (folder / name).mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder / name)]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                raise click.ClickException("No file system can be mounted: run it as root.")
        self.logs = folder / "run" / "logs"
        self.clock = Clock(folder)
        super().__init__(folder)
        self.edge = run_edge(self.settings)
        keys = KeyFile(keys_path(self.settings))
        self.key, self.attacker_key = keys.add("chaos", MAY), keys.add("attacker", MAY)
        self.environment |= {
            "GATEWAY_URL": f"{self.edge.url}/predictions/{MODEL}",
            "GATEWAY_CERTIFICATE": str(self.edge.certificate),
            "GATEWAY_KEY": self.key,
        }

    def to_torchserve(self, upload: Upload, version: str = "") -> Call:
        """Return a request to TorchServe itself."""
        headers = {"Content-Type": upload.content_type} | self.tokens.header("inference")
        url = f"{self.settings.inference_url}/predictions/{MODEL}/{version}"
        return Call(url.rstrip("/"), upload.body, headers)

    def to_page(self) -> Call:
        return Call(f"{self.settings.frontend_url}/api/predictions", GOOD.body)

    def to_edge(
        self,
        upload: Upload,
        path: str = f"/predictions/{MODEL}",
        key: str | None = None,
        source: str | None = None,
    ) -> Call:
        """Return a request to the edge, which may be from another client."""
        headers = {"Content-Type": upload.content_type, "X-API-Key": key or self.key}
        return Call(self.edge.url + path, upload.body, headers, self.edge.certificate, source)

    def to_edge_as_attacker(self, upload: Upload, path: str = f"/predictions/{MODEL}") -> Call:
        """Return a request to the edge with another key: each has limits of its own."""
        return self.to_edge(upload, path, self.attacker_key)

    @contextlib.contextmanager
    def full(self, folder: Path) -> Iterator[None]:
        """Leave no byte free on a small disk during the block."""
        filler = folder / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        assert shutil.disk_usage(folder).free == 0
        try:
            yield
        finally:
            filler.unlink()

    def close(self) -> None:
        self.edge.stop()
        super().close()


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Chaos]:
    """Run the service during the block."""
    try:
        with contextlib.closing(Chaos(folder)) as it:
            yield it
    finally:
        for name in reversed(DISKS):
            subprocess.run(["umount", "--lazy", str(folder / name)], capture_output=True)


def build(quick: bool) -> Scenario:
    """Return all faults."""
    return Scenario(
        "chaos",
        "Faults, on purpose",
        "Written by `make chaos`: what 16 users of `serving.client` and "
        f"{DIRECT} direct clients of TorchServe, and {CLIENTS} clients of the edge see during "
        "faults and attacks. The latter two send nothing twice; a direct client's request fails "
        "if TorchServe accepts it and does not answer well. "
        "Memory (RssAnon) is that of workers, Java, and page with supervisor.",
        started,
        {"users": 16, "direct": DIRECT, "gateway": CLIENTS},
        steps(quick),
        calm=4,
    )


def steps(quick: bool) -> list[Step]:
    damaged, damaged_live = (1_000, 200) if quick else (10_000, 2_000)
    uploads = hostile.collection()
    kills = {"a worker": rig.kill_worker, "TorchServe (Java)": rig.kill_java}
    return [
        *(
            Step(f"kill -9 of {what}{where}", around(kill), KILLS, workers_may_end=True)
            for where, around in {"": lambda kill: kill, ", log disk full": on_full_disk}.items()
            for what, kill in kills.items()
        ),
        Step(f"{FLOOD} requests at once, of which 128 may wait", flood),
        Step(
            f"{SLOW} slow clients of TorchServe",
            partial(slow_clients, lambda it: it.to_torchserve(GOOD), torchserve_answers),
        ),
        Step(
            f"{SLOW} slow clients of the page", partial(slow_clients, Chaos.to_page, page_answers)
        ),
        *(Step(name, partial(leave, how, Chaos.to_torchserve)) for name, how in LEAVING.items()),
        Step(f"{len(uploads)} hostile uploads to both versions", partial(send_all, uploads)),
        Step(f"{damaged_live:,} images damaged at random", partial(send_damaged, damaged_live)),
        Step(f"{damaged:,} images damaged at random, decoder alone", partial(decoder, damaged)),
        Step("asleep until the tokens expire", rig.sleep_until_expiry),
        *(
            Step(
                f"{SLOW} slow clients of the edge ({name})",
                partial(
                    slow_clients,
                    partial(Chaos.to_edge_as_attacker, upload=GOOD, path=path),
                    edge_answers,
                ),
            )
            for name, path in (("API", f"/predictions/{MODEL}"), ("page", "/api/predictions"))
        ),
        *(
            Step(f"{name}, of the edge", partial(leave, how, Chaos.to_edge_as_attacker))
            for name, how in LEAVING.items()
        ),
        Step(f"{len(uploads)} hostile uploads to the edge", partial(send_all_to_edge, uploads)),
        *attacks.steps(),
        Step(
            "TERM of the service, started again",
            terminate,
            # It may be away for longer than the users' client waits.
            may_fail={**KILLS, "users": math.inf, "clients": math.inf},
            workers_may_end=True,
        ),
        # Only now: under libfaketime, a service is several times slower.
        Step(f"clock set forward by {CLOCK_HOURS} hours", partial(set_clock, CLOCK_HOURS)),
        Step(f"clock set back by {CLOCK_HOURS} hours", partial(set_clock, 0)),
    ]


LEAVING: dict[str, Callable[[Call, int], Counter[str]]] = {
    f"{LEAVERS} half-sent bodies": connections.half_sent,
    f"{LEAVERS} clients that leave before their answer": connections.leaving,
}


def until_answered(result: Result, call: Callable[[], Call]) -> None:
    """Record the seconds until a good image is answered again."""
    started = time.time()
    while connections.once(call()) != "200":
        if time.time() - started > PATIENCE:
            result.expect(False, "it does not answer again")
            return
        time.sleep(0.05)
    result.notes["seconds until ready"] = time.time() - started


def on_full_disk(kill: Callable[[Chaos, Result], None]) -> Callable[[Chaos, Result], None]:
    """Return a fault while the disk of the logs has no byte left."""

    def killed(it: Chaos, result: Result) -> None:
        with it.full(it.logs):
            kill(it, result)

    return killed


def flood(it: Chaos, result: Result) -> None:
    """Send more requests at once than may wait, of the largest images that are not put off."""
    large = Upload("large", hostile.large_tiff(700, 500))
    result.sent = connections.at_once(it.to_torchserve(large, OTHER), FLOOD)
    until_answered(result, lambda: it.to_torchserve(GOOD))
    result.expect(result.sent["503"] > 0, "the queue was not full")
    result.expect(result.sent["200"] >= 128, "requests that waited were not answered")
    result.expect_sent("200", "503")


def slow_clients(
    call: Callable[[Chaos], Call], answers: Callable[[Chaos], bool], it: Chaos, result: Result
) -> None:
    """Hold connections, and trickle bytes; check whether other clients are answered."""
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(connections.slow, call(it), SLOW, SLOW_SECONDS)
        time.sleep(2)
        result.notes["other clients are answered"] = answers(it)
        result.sent = slow.result()
    it.wait(result, "ready", lambda: answers(it), since=time.time())
    result.expect_sent("let go", "closed", "408", "429")


def torchserve_answers(it: Chaos) -> bool:
    return connections.once(it.to_torchserve(GOOD)) == "200"


def page_answers(it: Chaos) -> bool:
    """Return whether the page answers."""
    with local_session() as session, contextlib.suppress(requests.RequestException):
        return session.get(f"{it.settings.frontend_url}/readyz", timeout=3).ok
    return False


def edge_answers(it: Chaos) -> bool:
    return connections.once(it.to_edge(GOOD)) == "200"


def leave(
    how: Callable[[Call, int], Counter[str]],
    call: Callable[[Chaos, Upload], Call],
    it: Chaos,
    result: Result,
) -> None:
    """Break off within bodies, or before answers."""
    result.sent = how(call(it, GOOD), LEAVERS)
    until_answered(result, lambda: call(it, GOOD))


def send_all(uploads: Iterable[Upload], it: Chaos, result: Result) -> None:
    """Send each hostile upload to both versions."""
    for version in (DEFAULT, OTHER):
        send(result, uploads, partial(it.to_torchserve, version=version))
    until_answered(result, lambda: it.to_torchserve(GOOD))


def send_damaged(count: int, it: Chaos, result: Result) -> None:
    send_all(list(hostile.mutations(count // 2, 1)), it, result)


def send_all_to_edge(uploads: Iterable[Upload], it: Chaos, result: Result) -> None:
    # The edge refuses forms that TorchServe cannot parse, or forwards their bytes.
    unread = hostile.UNREAD
    made = (
        replace(each, allowed=hostile.EITHER) if each.allowed == unread else each
        for each in uploads
    )
    send(result, made, it.to_edge)
    until_answered(result, lambda: it.to_edge(GOOD))


def send(result: Result, uploads: Iterable[Upload], to: Send) -> None:
    """Send uploads one after another, and record wrong answers and the slowest."""
    slowest, name = 0.0, ""
    for upload in uploads:
        # Some bodies take a second to make.
        call = to(upload)
        started = time.time()
        said = connections.once(call)
        if said == "400" and 400 not in upload.allowed:
            # The token may have been renewed on the way.
            started, said = time.time(), connections.once(to(upload))
        result.sent[said] += 1
        result.expect(said in map(str, upload.allowed), f"{upload.name}: {said}")
        if (took := time.time() - started) > slowest:
            slowest, name = took, upload.name
    result.notes |= {"slowest": name, "its seconds": slowest}


def decoder(count: int, it: Chaos, result: Result) -> None:
    """Decode damaged images in another process."""
    with ProcessPoolExecutor(1) as pool:
        result.sent, slowest = pool.submit(decode_damaged, count, 0).result()
    result.notes["slowest, seconds"] = slowest
    result.expect_sent("200", *map(str, hostile.REFUSED))
    result.expect(slowest < SLOWEST, f"one image took {slowest:.0f} s")


def decode_damaged(count: int, seed: int) -> tuple[Counter[str], float]:
    """Decode damaged images; return the outcomes, and the seconds of the slowest."""
    outcomes, slowest = Counter[str](), 0.0
    for upload in hostile.mutations(count, seed):
        started = time.perf_counter()
        try:
            decode(upload.body, within_field)
            outcomes["200"] += 1
        except InputError as error:
            outcomes[str(error.code)] += 1
        except Exception as error:
            outcomes[f"{type(error).__name__} at {upload.name}"] += 1
        slowest = max(slowest, time.perf_counter() - started)
    return outcomes, slowest


def set_clock(hours: int, it: Chaos, result: Result) -> None:
    """Set the service's clock: two hours later, all its tokens have expired."""
    it.clock.set(3600 * hours)
    time.sleep(2 * clock.DELAY)
    until_answered(result, lambda: it.to_torchserve(GOOD))


def terminate(it: Chaos, result: Result) -> None:
    """Stop the service with requests of the page in flight; start it with a clock to set."""
    large = hostile.large_tiff(4_000, 3_900)
    url = it.settings.frontend_url
    with page_session(local_session(8), url) as session, ThreadPoolExecutor(8) as pool:

        def ask(_: int) -> str:
            try:
                files = {"image": large}
                answer = session.post(f"{url}/api/predictions", files=files, timeout=60)
            except requests.RequestException:
                return "closed"
            return str(answer.status_code)

        asked = [pool.submit(ask, at) for at in range(8)]
        time.sleep(0.5)
        result.notes["in flight at TERM"] = sum(not each.done() for each in asked)
        stopping = time.time()
        it.service.stop()
        result.notes["seconds until it stopped"] = time.time() - stopping
        result.sent = Counter(each.result() for each in asked)
    result.expect_sent("200")
    starting = time.time()
    it.restart(**it.clock.environment)
    result.notes["seconds until ready"] = time.time() - starting


if __name__ == "__main__":
    engine.main(build)
