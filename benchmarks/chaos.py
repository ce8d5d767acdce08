"""Faults on purpose: what clients see while the service is killed, flooded and lied to.

It starts a service of its own on loopback, puts the drill's load of 16 users on it, and beside
them clients that ask TorchServe itself; then it makes one fault after another and writes what was
seen to benchmarks/results/. Exit code 1 if anything came out otherwise than it must.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import psutil
import requests

from benchmarks import chaos_report, drill, drill_report
from benchmarks.chaos_report import Fault
from benchmarks.drill_report import Request
from benchmarks.servers import Running
from benchmarks.soak import soak
from handler.preprocessing import InputError, decode, within_field
from serving.edge.keys import MAY, KeyFile
from serving.edge.settings import keys_path as edge_keys_path
from serving.http import local_session
from serving.settings import MODEL, ROOT, Settings
from serving.torchserve.tokens import TokenError, Tokens
from testing import connections, hostile
from testing.clients import Clients, page_session
from testing.clock import Clock
from testing.connections import Call
from testing.hostile import BYTES, Upload
from testing.service import Service, machine, run_edge, run_service

FOLDER = ROOT / ".build" / "chaos"
CALM = 4.0
STEPS = 21
DIRECT, DIRECT_PAUSE = 6, (0.05, 0.3)
# All that TorchServe can hold of the direct clients: nobody else asks it without asking again.
HELD = DIRECT
LOG_DISK = "2m"
# Fewer leave than may wait: TorchServe works for them all the same.
FLOOD, SLOW, LEAVERS = 500, 100, 100
SLOW_SECONDS = 15.0
CLOCK = 2 * 3600
# Damaged images for the decoder alone, and for the service.
DAMAGED, DAMAGED_LIVE = 10_000, 2_000
# Longer than any one image may take.
SLOWEST = 20.0


class Chaos(drill.Drill):
    """One service, the load on it, and the faults."""

    def __init__(self, folder: Path) -> None:
        self.logs = folder / "run" / "logs"
        self.on_small_disk = _mount(self.logs)
        self.clock = Clock(folder)
        super().__init__(folder)
        self._bar.reset(STEPS)
        self.faults: list[Fault] = []
        self.direct = Direct(self.settings)

    # --- The means

    def serve(self) -> Service:
        """Start the service, by a clock that can be set."""
        return run_service(self.settings, **self.clock.environment)

    @contextlib.contextmanager
    def fault(
        self, name: str, kills: bool = False, may_lose: int = 0, lossless: bool = True
    ) -> Iterator[Fault]:
        """Note what workers and memory are before a fault, when it begins and ends, and after."""
        before = self.look()
        with self.step(name, lossless, CALM) as step:
            fault = Fault(step, kills=kills, may_lose=may_lose, before=before)
            yield fault
        fault.after = self.look()
        self.faults.append(fault)

    def adopt(self, before: dict[str, Any], kills: bool = True, may_lose: int = HELD) -> Fault:
        """Return the drill's last step as a fault."""
        fault = Fault(self.steps[-1], kills=kills, may_lose=may_lose, before=before)
        fault.after = self.look()
        self.faults.append(fault)
        return fault

    def look(self) -> dict[str, Any]:
        """Return the workers' processes, and the memory of all."""
        tree = Running("", psutil.Process(self.service.process.pid))
        pids = [pid for version in drill.START.versions for pid in self._workers(version)]
        megabytes = {kind: round(sum(each)) for kind, each in tree.megabytes().items()}
        return {"workers": pids, "megabytes": megabytes}

    def call(self, upload: Upload, version: str = "") -> Call:
        """Return a request to TorchServe itself."""
        headers = {"Content-Type": upload.content_type} | self.tokens.header("inference")
        address = f"{self.settings.inference_url}/predictions/{MODEL}/{version}"
        return Call(address.rstrip("/"), upload.body, headers)

    @property
    def tokens(self) -> Tokens:
        return self.management.tokens

    def until_answered(self, fault: Fault, call: Call | None = None) -> None:
        """Measure the seconds until a good image is answered again, by TorchServe or as called."""
        started = time.time()
        good = Upload("good", hostile.encoded(hostile.sample(), "JPEG"))
        while connections.at_once(call or self.call(good), 1) != Counter({"200": 1}):
            if time.time() - started > drill.PATIENCE:
                fault.step.expect(False, "it does not answer again")
                break
            time.sleep(0.05)
        fault.step.seen["seconds until ready"] = time.time() - started

    # --- The faults

    def run(self) -> None:
        """Make all faults, one after the other."""
        self.killed()
        with self.full_disk():
            self.killed(", the disk of the logs full")
        self.queue_full()
        self.slow_clients()
        self.leavers()
        self.by_hand()
        self.at_random()
        self.decoder()
        before = self.look()
        self.asleep()
        self.adopt(before, kills=False, may_lose=0)
        self.clock_set()
        self.over_edge()
        self.terminated()
        time.sleep(CALM)

    def killed(self, where: str = "") -> None:
        """Kill a worker, and then Java."""
        for kill in (self.worker_killed, self.java_killed):
            before = self.look()
            kill()
            self.adopt(before).step.name += where

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        """Leave no byte on the disk that the logs lie on."""
        if not self.on_small_disk:
            raise click.ClickException("No file system can be mounted: run it as root.")
        filler = self.logs / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        assert shutil.disk_usage(self.logs).free == 0
        try:
            yield
        finally:
            filler.unlink()

    def queue_full(self) -> None:
        """Ask 2.0 for more at once than may wait, of what takes long."""
        body = hostile.tiff(1_500, 1_000, hostile.packed(1_500 * 1_000 * 3), 8)
        with self.fault(f"{FLOOD} requests at once, of which 128 may wait") as fault:
            fault.saw = connections.at_once(self.call(Upload("large", body), "2.0"), FLOOD)
            self.until_answered(fault)
            fault.step.expect(fault.saw["503"] > 0, "the queue was not full")
            fault.step.expect(fault.saw["200"] >= 128, "what waited was not answered")
            only(fault, ("200", "503"))

    def slow_clients(self) -> None:
        """Hold connections and trickle bytes."""
        good = Upload("good", hostile.encoded(hostile.sample(), "PNG"))
        with self.fault(f"{SLOW} slow clients of TorchServe") as fault:
            fault.saw = connections.slow(self.call(good), SLOW, SLOW_SECONDS)
            only(fault, ("let go", "408"))
            self.until_answered(fault)
        with self.fault(f"{SLOW} slow clients of the page") as fault:
            call = Call(f"{self.settings.frontend_url}/api/predictions", good.body)
            with ThreadPoolExecutor(1) as pool:
                slow = pool.submit(connections.slow, call, SLOW, SLOW_SECONDS)
                time.sleep(2)
                fault.step.seen["the page answers meanwhile"] = self._page_answers(3)
                fault.saw = slow.result()
            started = time.time()
            self.wait(fault.step, "the page", lambda: self._page_answers(5))
            fault.step.seen["seconds until ready"] = time.time() - started
            fault.step.expect(not fault.saw["nothing"], "a client saw nothing")

    def _page_answers(self, patience: float) -> bool:
        with local_session() as session, contextlib.suppress(requests.RequestException):
            return session.get(f"{self.settings.frontend_url}/readyz", timeout=patience).ok
        return False

    def leavers(self) -> None:
        """Break off within bodies, and before answers."""
        good = self.call(Upload("good", hostile.encoded(hostile.sample(), "PNG")))
        with self.fault(f"{LEAVERS} half-sent bodies") as fault:
            fault.saw = connections.half_sent(good, LEAVERS)
            self.until_answered(fault)
        with self.fault(f"{LEAVERS} clients that leave before their answer") as fault:
            fault.saw = connections.leaving(good, LEAVERS)
            self.until_answered(fault)

    def by_hand(self) -> None:
        """Send each hostile upload to both versions."""
        uploads = hostile.collection()
        with self.fault(f"{len(uploads)} hostile uploads made by hand, to both versions") as fault:
            for version in drill.START.versions:
                self.send(fault, uploads, version)
            fault.step.seen["500"] = "forms that TorchServe can't take apart; no worker hears of it"
            self.until_answered(fault)

    def at_random(self) -> None:
        """Send damaged images."""
        with self.fault(f"{DAMAGED_LIVE:,} images damaged at random") as fault:
            half = DAMAGED_LIVE // 2
            for version, seed in zip(drill.START.versions, (1, 2), strict=True):
                self.send(fault, hostile.mutations(half, seed), version)
            self.until_answered(fault)

    def send(self, fault: Fault, uploads: Iterable[Upload], version: str) -> None:
        """Send uploads one after another; note those that are not answered as they must be."""
        for upload in uploads:
            # Made before the clock runs: some bodies take a second to make.
            call = self.call(upload, version)
            started = time.time()
            [said] = connections.at_once(call, 1)
            # The token was renewed on the way.
            if said == "400" and 400 not in upload.allowed:
                call = self.call(upload, version)
                started = time.time()
                [said] = connections.at_once(call, 1)
            fault.saw[said] += 1
            if said not in map(str, upload.allowed):
                fault.step.expect(False, f"{upload.name}, {version}: {said}")
            slowest = fault.step.seen.get("seconds that the slowest took", 0.0)
            if (took := time.time() - started) > slowest:
                fault.step.seen["seconds that the slowest took"] = took
                fault.step.seen["the slowest"] = upload.name

    def clock_set(self) -> None:
        """Set the service's clock forward, so that all its tokens are over at once, and back."""
        for name, seconds in (("forward", CLOCK), ("back", 0)):
            with self.fault(f"clock set {name} by {CLOCK // 3600} hours") as fault:
                self.clock.set(seconds)
                self.until_answered(fault)

    def over_edge(self) -> None:
        """Behave badly in front of nginx, which stands between such clients and the service."""
        edge = run_edge(self.settings)
        key = KeyFile(edge_keys_path(self.settings)).add("chaos", MAY)
        session = local_session()
        session.verify = str(edge.certificate)

        def call(upload: Upload, path: str = f"/predictions/{MODEL}") -> Call:
            headers = {"Content-Type": upload.content_type, "X-API-Key": key}
            return Call(edge.url + path, upload.body, headers, edge.certificate)

        def answers() -> bool:
            with contextlib.suppress(requests.RequestException):
                return session.get(edge.url, timeout=3).ok
            return False

        good = Upload("good", hostile.encoded(hostile.sample(), "PNG"))
        try:
            for path, what in ((f"/predictions/{MODEL}", "programs"), ("/api/predictions", "page")):
                name = f"{SLOW} slow clients of the edge ({what})"
                with self.fault(name) as fault, ThreadPoolExecutor(1) as pool:
                    slow = pool.submit(connections.slow, call(good, path), SLOW, SLOW_SECONDS)
                    time.sleep(2)
                    fault.step.expect(answers(), "the page did not answer meanwhile")
                    fault.saw = slow.result()
                    only(fault, ("let go", "closed", "408", "429"))
                    self.until_answered(fault, call(good))
            with self.fault(f"{LEAVERS} half-sent bodies to the edge") as fault:
                fault.saw = connections.half_sent(call(good), LEAVERS)
                self.until_answered(fault, call(good))
            with self.fault(f"{LEAVERS} clients that leave the edge") as fault:
                fault.saw = connections.leaving(call(good), LEAVERS)
                self.until_answered(fault, call(good))
            uploads = hostile.collection()
            with self.fault(f"{len(uploads)} hostile uploads made by hand, to the edge") as fault:
                for upload in uploads:
                    [said] = connections.at_once(call(upload), 1)
                    fault.saw[said] += 1
                    # Where TorchServe fails at a form, the edge refuses it, or sends the bytes.
                    unread = upload.allowed == hostile.UNREAD
                    allowed = {200, *hostile.REFUSED} if unread else upload.allowed
                    known = said in map(str, allowed)
                    fault.step.expect(known, f"{upload.name}, by the edge: {said}")
                self.until_answered(fault, call(good))
        finally:
            edge.stop()

    def decoder(self) -> None:
        """Have the decoder alone read damaged images, in a process of its own."""
        with (
            self.fault(f"{DAMAGED:,} images damaged at random, to the decoder alone") as fault,
            ProcessPoolExecutor(1) as pool,
        ):
            fault.saw, slowest = pool.submit(decode_damaged, DAMAGED, 0).result()
            fault.step.seen["seconds that the slowest took"] = slowest
            only(fault, ("200", "400", "413", "415"))
            fault.step.expect(slowest < SLOWEST, f"one took {slowest:.0f} s")

    def terminated(self) -> None:
        """TERM the whole service with requests of the page in flight, and run it again."""
        large = hostile.tiff(5_000, 4_000, hostile.packed(5_000 * 4_000 * 3), 8)
        # More than the users' patience may go by until it is back: they are told so.
        name = "TERM of the service, run again"
        with self.fault(name, kills=True, may_lose=HELD, lossless=False) as fault:
            url = self.settings.frontend_url
            with page_session(local_session(8), url) as session, ThreadPoolExecutor(8) as pool:

                def ask(_: int) -> str:
                    try:
                        return str(
                            session.post(
                                f"{url}/api/predictions", files={"image": large}, timeout=60
                            ).status_code
                        )
                    except requests.RequestException:
                        return "closed"

                asked = [pool.submit(ask, at) for at in range(8)]
                time.sleep(0.5)
                fault.step.seen["in flight at TERM"] = sum(not each.done() for each in asked)
                told = time.time()
                self.service.stop()
                fault.step.seen["seconds until it had stopped"] = time.time() - told
                fault.saw = Counter(each.result() for each in asked)
            only(fault, ("200",))
            down = time.time()
            self.service = self.serve()
            fault.step.seen["seconds until ready"] = time.time() - down

    def close(self) -> None:
        """Stop everything, and give the small disk back."""
        super().close()
        if self.on_small_disk:
            subprocess.run(["umount", "--lazy", str(self.logs)], check=False)


class Direct(Clients):
    """Clients that ask TorchServe itself, one image after another, and nothing twice."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(DIRECT)
        self.settings = settings
        self.requests: list[Request] = []

    def ask_on(self, number: int) -> None:
        chance, tokens = random.Random(number), Tokens(self.settings.run_dir)
        image = hostile.encoded(hostile.sample(), "JPEG")
        address = f"{self.settings.inference_url}/predictions/{MODEL}"
        while not self.ending.wait(chance.uniform(*DIRECT_PAUSE)):
            moment, started = time.time(), time.perf_counter()
            try:
                call = Call(address, image, {"Content-Type": BYTES} | tokens.header("inference"))
                said = ask(call)
            except TokenError:
                said = "refused"
            took = 1000 * (time.perf_counter() - started)
            error = "" if said == "200" else said
            self.requests.append(Request(moment, took, f"direct-{number}", "", error))


def ask(call: Call) -> str:
    """Ask once; return the status, and of a refusal the type that its body tells, or no answer."""
    connection = http.client.HTTPConnection(*call.address, timeout=connections.PATIENCE)
    with contextlib.closing(connection):
        try:
            connection.request("POST", urlsplit(call.url).path, call.body, dict(call.headers))
            response = connection.getresponse()
            body = response.read()
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "nothing"
        except (OSError, http.client.HTTPException):
            return "closed"
    return "200" if response.status == 200 else f"{response.status} {_kind(body)}".rstrip()


def _kind(body: bytes) -> str:
    """Return what an error's JSON says that it is; nothing if it doesn't."""
    try:
        return str(json.loads(body)["type"])
    except (ValueError, TypeError, KeyError):
        return ""


def only(fault: Fault, allowed: Sequence[str]) -> None:
    """Note what was seen beyond what is allowed."""
    for said in fault.saw.keys() - set(allowed):
        fault.step.expect(False, f"{fault.saw[said]} times: {said}")


def decode_damaged(count: int, seed: int) -> tuple[Counter[str], float]:
    """Decode damaged images; return what came of them, and the seconds of the slowest."""
    saw, slowest = Counter[str](), 0.0
    for upload in hostile.mutations(count, seed):
        started = time.perf_counter()
        try:
            decode(upload.body, within_field)
            saw["200"] += 1
        except InputError as error:
            saw[str(error.code)] += 1
        except Exception as error:
            saw[f"{type(error).__name__} at {upload.name}"] += 1
        slowest = max(slowest, time.perf_counter() - started)
    return saw, slowest


def _mount(folder: Path) -> bool:
    """Put a disk of some megabytes in a folder's place, if we may."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={LOG_DISK}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def chaos(results: Path) -> list[str]:
    """Make all faults and write what was seen; return what came out wrongly."""
    folder = FOLDER
    subprocess.run(["umount", "--lazy", str(folder / "run" / "logs")], capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    running = Chaos(folder)
    try:
        with drill.load(running), running.direct:
            running.run()
    finally:
        running.close()
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "direct_clients": DIRECT,
    }
    users = drill_report.read_requests(running.log)
    document = chaos_report.summary(about, running.faults, users, running.direct.requests)
    chaos_report.write(results, document)
    problems: list[str] = document["problems"]
    return problems


@click.command()
@click.option("--soak", "minutes", type=float, help="Only a steady load, for so many minutes.")
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=drill.RESULTS,
    help="Write the figures to this folder, not to benchmarks/results/.",
)
def main(minutes: float | None, results: Path) -> None:
    """Break the service in all ways under load; write what clients saw."""
    if minutes:
        folder = ROOT / ".build" / "soak"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        problems, written = soak(minutes, folder, results), "soak.md"
    else:
        problems, written = chaos(results), "chaos.md"
    for problem in problems:
        click.echo(problem, err=True)
    click.echo(f"See {os.path.relpath(results / written)}.")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
