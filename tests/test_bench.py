"""The benchmark: what is sent, how it is counted, and what is told of it."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import requests
from PIL import Image
from werkzeug.formparser import parse_form_data
from werkzeug.test import EnvironBuilder

from benchmarks import bench, bench_report, limit, servers
from benchmarks.bench import Bodies
from benchmarks.peers.kernels import Ours, Plain
from benchmarks.servers import SERVERS, SERVICE, Running, multipart
from handler.payload import parse
from handler.verdict import CLASSES
from serving.deployment import known_answers
from serving.settings import ROOT

SAMPLES = [path.read_bytes() for path in sorted(known_answers.SAMPLES.glob("*.png"))]


def loads(speed: float, failed: int = 0) -> list[dict[str, Any]]:
    """Return what a server is measured to do in a round, faster by its number of clients."""
    rest = {
        "p50": 1000 / speed,
        "p99": 2000 / speed,
        "failed": failed,
        "cpu_microseconds": {"worker": 90.0, "java": 10.0},
    }
    return [
        {"size": size, "clients": n, "images": images, "form": form, **rest}
        | {"images_a_second": speed * n}
        for size in bench_report.SIZES
        for n, images, form in [
            *((clients, 1, False) for clients in bench_report.CLIENTS),
            (64, 16, False),
            (64, 16, True),
        ]
    ]


@pytest.fixture
def found() -> dict[str, Any]:
    """Return a run in which this deployment does 120 a second for each client, its peers less."""
    memory = {"megabytes": {"worker": 90.0, "java": 200.0}, "megabytes_in_all": 400.0}
    speeds = {server.name: 10.0 + at for at, server in enumerate(SERVERS)} | {"bloodcells": 120.0}
    row = {"images_a_second": 5, "p50": 1, "p99": 2, "failed": 0}
    return {
        "date": "2026-01-02",
        "machine": {"processor": "one", "cores": 2},
        "rounds": 3,
        "servers": {
            name: {
                "starts": [{"seconds": 3.0, **memory}] * 3,
                "loads": [
                    {"round": number, **each}
                    for number, factor in enumerate((0.5, 1, 1.2))
                    for each in loads(speed * factor, failed=name == "ray-ours")
                ],
                "differences": 0.0,
            }
            for name, speed in speeds.items()
        },
        "limit": [{size: dict.fromkeys(limit.KINDS, 9600.0) for size in bench_report.SIZES}] * 3,
        "growth": {
            name: [{"amount": amount, **row} for amount in amounts]
            for name, amounts in bench.GROWTH.items()
        },
        "sizes": {"archive": 1.5, "environment": 900.0} | dict.fromkeys(servers.PEER_NAMES, 1000.0),
    }


class TestReport:
    def test_ratios_are_of_one_round_each(self, found: dict[str, Any]) -> None:
        assert bench_report.speed(found, SERVICE.name, 64) == 120 * 64
        assert bench_report.best_peer(found, 64) == SERVERS[-1].name
        assert bench_report.ratios(found, SERVERS[-1].name, 16) == pytest.approx(
            [120 / (9 + len(SERVERS))] * 3
        )
        for row in found["servers"]["fastapi-ours"]["loads"]:
            row["images_a_second"] = row["clients"] * 120
        assert bench_report.ratios(found, "fastapi-ours", 16) == pytest.approx([0.5, 1, 1.2])
        assert bench_report.shares(found, 64) == pytest.approx([0.4, 0.8, 0.96])
        assert bench_report.limit(found, "work") == 9600

    def test_the_best_peer_has_our_kernel(self, found: dict[str, Any]) -> None:
        found["servers"]["flask-plain"]["loads"] = [{"round": 0, **each} for each in loads(500)]
        assert bench_report.best_peer(found, 64) == SERVERS[-1].name

    def test_failures_are_counted(self, found: dict[str, Any]) -> None:
        assert bench_report.failures(found) == 3 * len(loads(1))
        assert f"of all servers: {bench_report.failures(found)}." in bench_report.page(found)

    def test_all_of_it_is_written(
        self, found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: dict[str, str] = {}
        monkeypatch.setattr(bench_report, "RESULTS", tmp_path / "bench.json")
        monkeypatch.setattr(bench_report, "write_readme", told.update)
        bench_report.write(found)
        assert bench_report.load() == found
        page = (tmp_path / "bench.md").read_text()
        assert told["bench"] in page
        for server in SERVERS:
            assert server.title in page
        # Of two cores at 7680 images a second.
        assert "| the workers | 90 | 35% |" in page
        assert "| the load, the page, the system | 160 | 62% |" in page
        assert "| 80% (40% to 96%) |" in told["bench"]
        assert "8.33 ms, 16.67 ms" in told["bench"]
        assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")

    def test_a_quick_look_tells_what_changed(self, found: dict[str, Any]) -> None:
        chosen = {server.name for server in bench_report.quick_choice(SERVERS)}
        assert SERVICE.name in chosen
        now = json.loads(json.dumps(found))
        now["servers"] = {name: now["servers"][name] for name in chosen}
        for row in now["servers"][SERVICE.name]["loads"]:
            row["images_a_second"] *= 0.5
        lines = bench_report.against(now, found).splitlines()
        assert len(lines) == 1 + 3 * len(bench_report.CLIENTS) + 1
        assert all(line.endswith("-50%") for line in lines[1:-1])


class TestBodies:
    @pytest.fixture
    def bodies(self, blood_cells: Path, tmp_path: Path) -> Bodies:
        return Bodies(blood_cells, tmp_path)

    def test_images_go_as_they_are(self, bodies: Bodies) -> None:
        folder, content_type = bodies.singles(bench.SMALL, SERVICE)
        sent = [path.read_bytes() for path in sorted(folder.iterdir())]
        assert sent == bodies.images[bench.SMALL]
        assert content_type == "image/jpeg"
        assert bodies.singles(bench.SMALL, SERVICE) == (folder, content_type)

    def test_every_form_is_one_of_the_type_that_is_sent(self, bodies: Bodies) -> None:
        folder, content_type = bodies.several(5, form=True)
        for path in folder.iterdir():
            assert len(files_in(path.read_bytes(), content_type)) == 5

    def test_several_are_sent_in_json(self, bodies: Bodies) -> None:
        folder, content_type = bodies.several(5)
        assert content_type == "application/json"
        for path in folder.iterdir():
            images = parse({"body": json.loads(path.read_bytes())}, {}).images
            assert set(images) <= set(bodies.images[bench.SMALL])
            assert len(images) == 5

    def test_images_are_enlarged(self, bodies: Bodies) -> None:
        folder, _ = bodies.of_megapixels(1)
        with Image.open(next(folder.iterdir())) as image:
            width, height = image.size
        assert width * height == pytest.approx(1e6, rel=0.01)


def files_in(body: bytes, content_type: str) -> list[bytes]:
    environ = EnvironBuilder(method="POST", data=body, content_type=content_type).get_environ()
    _stream, _form, files = parse_form_data(environ)
    read = [file.read() for file in files.values()]
    for file in files.values():
        file.close()
    return read


def test_one_image_is_a_form_too() -> None:
    content_type, body = multipart(SAMPLES[:1])
    assert files_in(body, content_type) == SAMPLES[:1]


class TestKernels:
    def test_they_see_the_same(self) -> None:
        ours, plain = Ours()(SAMPLES), Plain()(SAMPLES)
        for one, other in zip(ours, plain, strict=True):
            assert one["label"] == other["label"]
            assert tuple(one["probabilities"]) == tuple(other["probabilities"]) == CLASSES
            assert sum(other["probabilities"].values()) == pytest.approx(1)

    @pytest.mark.parametrize("kind", limit.KINDS)
    def test_the_limit_is_measured(self, kind: str, tmp_path: Path) -> None:
        for at in range(limit.BATCH):
            (tmp_path / str(at)).write_bytes(SAMPLES[at % len(SAMPLES)])
        assert limit.loop(kind, tmp_path, 0.01) > 0

    def test_a_peer_answers_as_its_kernel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KERNEL", "ours")
        app = importlib.import_module("benchmarks.peers.flask_app").app
        answer = app.test_client().post("/", data=SAMPLES[0]).json
        assert answer == Ours()(SAMPLES[:1])[0]


def test_torchserve_as_it_comes_answers(sample_image: Path) -> None:
    [stock] = [server for server in SERVERS if server.name == bench_report.STOCK]
    with servers.ready(stock) as (running, seconds):
        said = requests.post(running.url, sample_image.read_bytes(), timeout=60).json()
        memory = running.megabytes()
    assert seconds > 0
    [plain] = Plain()([sample_image.read_bytes()])
    assert set(said) == set(CLASSES)
    assert max(said, key=said.get) == plain["label"]
    assert memory["java"]
    assert memory["worker"]


class Answering(BaseHTTPRequestHandler):
    """Answers what has come; 503 to a body that says so."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.headers["Content-Type"], self.headers["Authorization"], body))
        self.send_response(503 if body == b"refuse" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def answering() -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    handler = type("Seeing", (Answering,), {"seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", handler.seen
        server.shutdown()


def test_other_answers_end_the_run() -> None:
    known = [{"A": 0.25, "B": 0.75}]
    assert bench._difference(SERVICE, [{"A": 0.25001, "B": 0.74999}], known) < bench.SAME
    with pytest.raises(RuntimeError, match="this deployment answers otherwise"):
        bench._difference(SERVICE, [{"A": 0.26, "B": 0.74}], known)


def test_the_peers_have_the_products_versions() -> None:
    def pins(path: Path) -> set[str]:
        return {line for line in path.read_text().splitlines() if not line.startswith("#")}

    assert pins(servers.PEERS / "kernels.txt") <= pins(ROOT / "requirements.txt")


@pytest.mark.skipif(not (shutil.which("wrk") or os.environ.get("CI")), reason="no wrk")
def test_a_server_that_answers_nothing_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(b"refuse")
    with answering() as (url, _seen), pytest.raises(RuntimeError, match="answered none"):
        bench.load(Running(url, psutil.Process()), (tmp_path, "image/x"), 1, 1)


@pytest.mark.skipif(not (shutil.which("wrk") or os.environ.get("CI")), reason="no wrk")
def test_a_load_counts_images_and_failures(tmp_path: Path) -> None:
    bodies = [b"one", b"two\0\r\n", b"refuse", b"four"]
    for at, body in enumerate(bodies):
        (tmp_path / str(at)).write_bytes(body)
    with answering() as (url, seen):
        running = Running(url, psutil.Process(), {"Authorization": "Bearer me"})
        row = bench.load(running, (tmp_path, "image/x"), 2, 1, images=3)
    assert {(kind, token) for kind, token, _ in seen} == {("image/x", "Bearer me")}
    assert {body for *_, body in seen} == set(bodies)
    # What is under way at the end is not counted.
    assert row["failed"] == pytest.approx(len(seen) / 4, abs=3)
    assert row["images_a_second"] == pytest.approx(3 * 3 / 4 * len(seen), rel=0.2, abs=20)
    assert 0 < row["p50"] <= row["p99"]
    assert row["cpu_microseconds"]["python"] > 0
