"""The benchmarks: requests, measurements and reports."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from stand_in import StandIn
from werkzeug.formparser import parse_form_data
from werkzeug.test import EnvironBuilder

from benchmarks import bench, bench_report, gpu, limit, servers
from benchmarks.bench import Bodies
from benchmarks.peers.kernels import Ours, Plain
from benchmarks.report import RESULTS
from benchmarks.servers import SERVERS, SERVICE, Running
from handler.payload import parse
from serving.deployment import known_answers
from serving.settings import ROOT
from testing import processes

SAMPLES = [path.read_bytes() for path in sorted(known_answers.SAMPLES.glob("*.png"))]


def loads(speed: float, failed: int = 0) -> list[dict[str, Any]]:
    """Return the loads of a server in a round, faster by its number of clients."""
    rest = {
        "p50": 1000 / speed,
        "p99": 2000 / speed,
        "failed": failed,
        "cpu_microseconds": {"worker": 90.0, "java": 10.0},
    }
    singles = [(clients, 1, False) for clients in bench_report.CLIENTS]
    return [
        {"size": size, "clients": clients, "images": images, "form": form, **rest}
        | {"images_a_second": speed * clients}
        for size in bench_report.SIZES
        for clients, images, form in [*singles, (64, 16, False), (64, 16, True)]
    ]


@pytest.fixture
def found() -> dict[str, Any]:
    """Return a run in which this deployment answers 120 a second for each client, peers less."""
    start = {"seconds": 3.0, "megabytes": {"worker": 90.0, "java": 200.0}}
    start["megabytes_in_all"] = 380.0
    speeds = {server.name: 10.0 + at for at, server in enumerate(SERVERS)} | {"bloodcells": 120.0}
    return {
        "date": "2026-01-02",
        "machine": {"processor": "one", "cores": 2},
        "rounds": 3,
        "servers": {
            name: {
                "starts": [start] * 3,
                "loads": [
                    {"round": number, **each}
                    for number, factor in enumerate((0.5, 1, 1.2))
                    for each in loads(speed * factor, failed=name == "litserve-ours")
                ],
                "differences": 0.0,
            }
            for name, speed in speeds.items()
        },
        "limit": [{size: dict.fromkeys(limit.KINDS, 9600.0) for size in bench_report.SIZES}] * 3,
    }


class TestReport:
    def test_all_of_it_is_written(
        self, found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tables: dict[str, str] = {}
        monkeypatch.setattr(bench_report, "RESULTS", tmp_path)
        monkeypatch.setattr(bench_report, "write_readme", lambda parts, _: tables.update(parts))
        bench_report.write(found)
        assert bench_report.load() == found
        page = (tmp_path / "bench.md").read_text()
        for text in (
            tables["bench"],
            *(server.title for server in SERVERS),
            f"Failed requests, of all servers: {3 * len(loads(1))}.",
            # Of two cores at 7680 images a second.
            "| the workers | 90 | 35% |",
            "| the load, the page, the system | 160 | 62% |",
        ):
            assert text in page
        assert "| 80% (40% to 96%) |" in tables["bench"]
        assert "8.33 ms, 16.67 ms" in tables["bench"]
        assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("name", "page"), [("bench", bench_report.page), ("gpu", gpu.page)])
def test_a_committed_report_is_that_of_its_figures(name: str, page: Any) -> None:
    figures = json.loads((RESULTS / f"{name}.json").read_text())
    assert (RESULTS / f"{name}.md").read_text() == f"{page(figures).rstrip()}\n"


@pytest.mark.data
def test_a_folder_holds_images_forms_or_json(blood_cells: Path, tmp_path: Path) -> None:
    bodies = Bodies(blood_cells, tmp_path)
    folder, content_type = bodies.singles(bench.SMALL, SERVICE)
    sent = [path.read_bytes() for path in sorted(folder.iterdir())]
    assert (sent, content_type) == (bodies.images[bench.SMALL], "image/jpeg")
    assert bodies.singles(bench.SMALL, SERVICE) == (folder, content_type)
    folder, content_type = bodies.several(5, form=True)
    for path in folder.iterdir():
        assert len(files_in(path.read_bytes(), content_type)) == 5
    folder, content_type = bodies.several(5)
    assert content_type == "application/json"
    for path in folder.iterdir():
        images = parse({"body": json.loads(path.read_bytes())}, {}).images
        assert len(set(images) & set(bodies.images[bench.SMALL])) == len(images) == 5


def files_in(body: bytes, content_type: str) -> list[bytes]:
    environ = EnvironBuilder(method="POST", data=body, content_type=content_type).get_environ()
    _stream, _form, files = parse_form_data(environ)
    read = [file.read() for file in files.values()]
    for file in files.values():
        file.close()
    return read


class TestKernels:
    def test_a_peer_answers_as_its_kernel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KERNEL", "ours")
        app = importlib.import_module("benchmarks.peers.flask_app").app
        answer = app.test_client().post("/", data=SAMPLES[0]).json
        assert answer == Ours()(SAMPLES[:1])[0]


@pytest.mark.live
@pytest.mark.long
def test_plain_torchserve_answers(sample_image: Path) -> None:
    [stock] = [server for server in SERVERS if server.name == bench_report.STOCK]
    with servers.ready(stock) as (running, seconds):
        said = requests.post(running.url, sample_image.read_bytes(), timeout=60).json()
        memory = processes.megabytes(running.process)
    assert seconds > 0
    [plain] = Plain()([sample_image.read_bytes()])
    assert set(said) == set(plain["probabilities"])
    assert max(said, key=said.get) == plain["label"]
    assert memory["java"]
    assert memory["worker"]


def test_different_answers_end_the_run() -> None:
    known = [{"A": 0.25, "B": 0.75}]
    assert bench._difference(SERVICE, [{"A": 0.25001, "B": 0.74999}], known) < bench.SAME
    with pytest.raises(RuntimeError, match="this deployment answers differently"):
        bench._difference(SERVICE, [{"A": 0.26, "B": 0.74}], known)


def test_the_peers_have_the_same_versions() -> None:
    def pins(path: Path) -> set[str]:
        return {line for line in path.read_text().splitlines() if not line.startswith("#")}

    ours = pins(ROOT / "requirements.txt") | pins(ROOT / "requirements-dev.txt")
    assert pins(servers.PEERS / "kernels.txt") <= ours


@pytest.mark.long
@pytest.mark.skipif(not (shutil.which("wrk") or os.environ.get("CI")), reason="no wrk")
def test_a_load_counts_images_and_failures(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bodies = [b"one", b"two\0\r\n", b"refuse", b"four"]
    for at, body in enumerate(bodies):
        (tmp_path / str(at)).write_bytes(body)
    seen: list[tuple[str, str, bytes]] = []

    def answer(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        seen.append((request.headers["Content-Type"], request.headers["Authorization"], body))
        return 503 if body == b"refuse" else 200, b""

    with StandIn(tmp_path_factory.mktemp("run")) as server:
        server.answer = answer
        url = f"http://127.0.0.1:{server.settings.inference_port}/"
        running = Running(url, psutil.Process(), {"Authorization": "Bearer me"})
        row = bench.load(running, (tmp_path, "image/x"), 2, 5, images=3)
    assert {(kind, token) for kind, token, _ in seen} == {("image/x", "Bearer me")}
    assert {body for *_, body in seen} == set(bodies)
    # wrk does not count what is in flight at its end: one request for each of two clients.
    assert 0 <= sum(body == b"refuse" for *_, body in seen) - row["failed"] <= 2
    assert row["images_a_second"] > 0
    assert 0 < row["p50"] <= row["p99"]
    assert row["cpu_microseconds"]["python"] > 0
