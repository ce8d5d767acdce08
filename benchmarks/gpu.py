"""Compare the service on the cores and on a GPU: `python -m benchmarks.gpu`.

Needs a GPU, the onnxruntime-gpu that fits, wrk and the images. Only `deviceType` in the archives'
model-config.yaml differs. Writes benchmarks/results/gpu.{json,md}.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import report
from benchmarks.bench import WARM_UP, Bodies, load
from benchmarks.bench_report import SMALL
from benchmarks.report import RESULTS, Document, table
from benchmarks.servers import SERVICE, Running, ours
from serving.deployment import archives, known_answers
from serving.deployment import load as deployed
from serving.settings import ROOT, Settings
from testing.service import machine

CLIENTS, SECONDS = 64, 4
# Images a request, in JSON.
MANY = 16


def main() -> None:
    """Measure each version on both devices, and write the report."""
    cores = machine()["cores"]
    plans = [("cpu", cores), *(("gpu", workers) for workers in sorted({1, 4, cores}))]
    versions = sorted(deployed(ROOT / "deployment.yaml").versions)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        bodies = Bodies(report.images_root(), Path(name))
        bar = tqdm([(version, *plan) for version in versions for plan in plans], unit="service")
        for version, device, workers in bar:
            bar.set_description(f"{version} on {device}, {workers} workers")
            folder = Path(tempfile.mkdtemp(dir=name))
            rows.append(service(folder, version, device, workers, bodies))
            if rows[-1]["explanation"]["label"] != rows[0]["explanation"]["label"]:
                raise RuntimeError(f"{bar.desc}: the answer differs from that of the cores.")
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    gpus = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    document = report.about() | {"gpu": gpus.splitlines()[0], "services": rows}
    report.write(RESULTS, "gpu", document, page(document))


def service(
    folder: Path, version: str, device: str, workers: int, bodies: Bodies
) -> dict[str, Any]:
    """Run the service with one version on a device, load it, and return its figures."""
    store = folder / "store"
    store.mkdir()
    with_device(archives.built(Settings(), version), store, device)
    started = time.perf_counter()
    with ours(folder, version=version, workers=workers, model_store=store) as asked:
        seconds = time.perf_counter() - started
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
            "explanation": explanation(asked),
        }


def with_device(archive: Path, store: Path, device: str) -> None:
    """Copy an archive into a store, with another deviceType in its settings."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(store / archive.name, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "model-config.yaml":
                assert b"deviceType: cpu" in content
                content = content.replace(b"deviceType: cpu", f"deviceType: {device}".encode())
            new.writestr(name, content)


def explanation(asked: Running) -> dict[str, Any]:
    """Return the label and the seconds of a first explanation."""
    image = (known_answers.SAMPLES / "neutrophil.png").read_bytes()
    explaining = replace(asked, url=asked.url.replace("predictions", "explanations"))
    answer = explaining.post("application/octet-stream", image)
    answer.raise_for_status()
    seconds = round(answer.elapsed.total_seconds(), 1)
    return {"label": answer.json()["label"], "seconds": seconds}


def page(found: Document) -> str:
    """Return the report as Markdown."""
    heads = ["version", "on", "workers", f"images a second, {CLIENTS} clients"]
    heads += [f"{MANY} images a request", "worker time an image, µs", "1 client, p50, ms"]
    heads += ["first explanation, s", "ready, s", "failed"]
    rows = [
        (
            row["version"],
            row["device"].upper(),
            row["workers"],
            f"{row['single']['images_a_second']:,.0f}",
            f"{row['many']['images_a_second']:,.0f}",
            f"{row['many']['cpu_microseconds']['worker']:,.0f}",
            f"{row['lone']['p50']:.1f}",
            row["explanation"]["seconds"],
            row["ready"],
            sum(row[each]["failed"] for each in ("lone", "single", "many")),
        )
        for row in found["services"]
    ]
    return (
        "# On a GPU\n\n"
        f"Written by `python -m benchmarks.gpu`. {report.measured_on(found)}, which service and "
        f"wrk share, and a GPU ({found['gpu']}). One run; images of TEST, 320x240.\n\n"
        f"{table(heads, rows)}"
    )


if __name__ == "__main__":
    main()
