"""The same service on the cores and on a GPU: `python -m benchmarks.gpu`.

Wants a GPU, the onnxruntime-gpu that fits, and wrk. The archives are those of `make mar`; only
`deviceType` of their model-config.yaml is another. Each version is loaded on the cores and on the
GPU by 64 clients, which wrk on the same cores plays; then its networks are timed alone on both.

Writes benchmarks/results/gpu.json and a table of it.
"""

from __future__ import annotations

import datetime
import subprocess
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
from tqdm import tqdm

from benchmarks.bench import WARM_UP, Bodies, load
from benchmarks.bench_report import SMALL
from benchmarks.servers import SERVICE, Running
from handler.engine import Engine
from handler.locator import CANVAS
from serving.deployment import Deployment, VersionSpec, archives, known_answers
from serving.settings import ROOT, Settings
from serving.torchserve.tokens import Tokens
from testing.service import free_settings, machine, run_service
from training import data
from training.version_files import write_json

RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
CLIENTS, SECONDS = 64, 4
# Images a request, in JSON.
MANY = 16
BATCHES = (1, 8, 16)
# The networks of a version: what one input of theirs is.
INPUTS: dict[str, dict[str, tuple[tuple[int, ...], str]]] = {
    "1.0": {"network.onnx": ((60, 80, 3), "u1")},
    "2.0": {
        "locator.onnx": ((CANVAS, CANVAS, 3), "u1"),
        "network.onnx": ((3, 60, 80), "f4"),
    },
}


def main() -> None:
    """Measure, and write it down."""
    cores = machine()["cores"]
    # Java and wrk want cores, too; a GPU's workers wait for it.
    most = max(1, cores - 4)
    plans = [("cpu", most), *(("gpu", workers) for workers in sorted({1, min(4, most), most}))]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        bodies = Bodies(data.data_root(), Path(name))
        bar = tqdm([(version, *plan) for version in INPUTS for plan in plans], unit="service")
        for version, device, workers in bar:
            bar.set_description(f"{version} on {device}, {workers} workers")
            folder = Path(tempfile.mkdtemp(dir=name))
            rows.append(service(folder, version, device, workers, bodies))
            if rows[-1]["explanation"]["label"] != rows[0]["explanation"]["label"]:
                raise RuntimeError(f"{bar.desc} answers otherwise than on the cores.")
            print(rows[-1], flush=True)
    found = {
        "date": datetime.date.today().isoformat(),
        "machine": {**machine(), "gpu": gpu_name()},
        "services": rows,
        "networks": networks(),
    }
    write_json(RESULTS, found)
    RESULTS.with_suffix(".md").write_text(page(found))
    print(page(found))


def service(
    folder: Path, version: str, device: str, workers: int, bodies: Bodies
) -> dict[str, Any]:
    """Run the service with one version on a device, load it, and return what came of it."""
    store = folder / "store"
    store.mkdir()
    with_device(archives.built(Settings(), version), store, device)
    wanted = Deployment(default=version, versions={version: VersionSpec(workers=workers)})
    settings = free_settings(folder / "run", wanted).model_copy(update={"model_store": store})
    started = time.perf_counter()
    running = run_service(settings)
    try:
        seconds = time.perf_counter() - started
        url = f"{settings.inference_url}/predictions/bloodcells"
        headers = Tokens(settings.run_dir).header("inference")
        asked = Running(url, psutil.Process(running.process.pid), headers)
        single, many = bodies.singles(SMALL, SERVICE), bodies.several(MANY)
        load(asked, single, CLIENTS, WARM_UP)
        return {
            "version": version,
            "device": device,
            "workers": workers,
            "ready": round(seconds, 1),
            "lone": load(asked, single, 1, SECONDS),
            "single": load(asked, single, CLIENTS, SECONDS),
            "many": load(asked, many, CLIENTS, SECONDS, MANY),
            "explanation": explanation(settings, headers),
        }
    finally:
        running.stop()


def with_device(archive: Path, store: Path, device: str) -> None:
    """Copy an archive into a store, with another deviceType in its settings."""
    copy = store / archive.name
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "model-config.yaml":
                assert b"deviceType: cpu" in content
                content = content.replace(b"deviceType: cpu", f"deviceType: {device}".encode())
            new.writestr(name, content)


def explanation(settings: Settings, headers: Any) -> dict[str, Any]:
    """Ask where the network looked; return the label, and the seconds, torch's loading included."""
    url = f"{settings.inference_url}/explanations/bloodcells"
    image = (known_answers.SAMPLES / "neutrophil.png").read_bytes()
    headers = {**headers, "Content-Type": "application/octet-stream"}
    answer = requests.post(url, image, headers=headers, timeout=60)
    answer.raise_for_status()
    return {
        "label": answer.json()["label"],
        "seconds": round(answer.elapsed.total_seconds(), 1),
    }


def networks() -> list[dict[str, Any]]:
    """Return how long an input takes in each network alone, on a core and on the GPU."""
    rows = []
    for version, each in INPUTS.items():
        for name, (shape, kind) in each.items():
            graph = (ROOT / "models" / version / name).read_bytes()
            for batch in BATCHES:
                engines = {"cpu": Engine(graph, 1, None), "gpu": Engine(graph, 1, 0, batch)}
                inputs = np.random.default_rng(0).random((batch, *shape)) * 255
                row = {"version": version, "network": name.removesuffix(".onnx"), "batch": batch}
                said = {device: engine(inputs.astype(kind)) for device, engine in engines.items()}
                row["difference"] = float(np.abs(said["cpu"] - said["gpu"]).max())
                for device, engine in engines.items():
                    row[device] = microseconds(engine, inputs.astype(kind)) / batch
                rows.append(row)
    return rows


def microseconds(engine: Engine, inputs: Any) -> float:
    """Return the median of what a call takes in half a second of calls."""
    for _ in range(5):
        engine(inputs)
    taken, until = [], time.perf_counter() + 0.5
    while time.perf_counter() < until:
        started = time.perf_counter()
        engine(inputs)
        taken.append(1e6 * (time.perf_counter() - started))
    return float(np.median(taken))


def gpu_name() -> str:
    """Return what the driver calls the first GPU."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]


def page(found: dict[str, Any]) -> str:
    """Return the tables."""
    box = found["machine"]
    lines = [
        "# On a GPU",
        "",
        f"{found['date']}, {box['gpu']} beside {box['cores']} cores, which wrk and Java have, too. "
        "One run; images of TEST, 320x240. Written by `python -m benchmarks.gpu`.",
        "",
        f"| version | on | workers | images a second, {CLIENTS} clients | with {MANY} a request "
        "| a lone client, p50 | a worker's first explanation | ready | failed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["services"]:
        failed = sum(row[each]["failed"] for each in ("lone", "single", "many"))
        lines.append(
            f"| {row['version']} | {row['device'].upper()} | {row['workers']} "
            f"| {row['single']['images_a_second']:,.0f} | {row['many']['images_a_second']:,.0f} "
            f"| {row['lone']['p50']:.1f} ms | {row['explanation']['seconds']:.1f} s "
            f"| {row['ready']:.1f} s | {failed} |"
        )
    lines += [
        "",
        "Microseconds of a worker for an image: "
        + "; ".join(
            f"{row['version']} on {row['device'].upper()} with {row['workers']}: "
            f"{row['many']['cpu_microseconds']['worker']:,.0f}"
            for row in found["services"]
        )
        + f" (with {MANY} a request).",
        "",
        "The networks alone, the gate left out, microseconds an input:",
        "",
        "| version | network | batch | one core | GPU | outputs differ by at most |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['version']} | {row['network']} | {row['batch']} | {row['cpu']:,.0f} "
        f"| {row['gpu']:,.0f} | {row['difference']:.0e} |"
        for row in found["networks"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
