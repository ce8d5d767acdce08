"""The manifests and the image: valid, confined, and consistent with the code they run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import requests
import yaml
from conftest import free_settings
from flask import Flask
from page_stand_in import serving

from serving import deployment
from serving.settings import ROOT, Settings
from serving.supervisor import exporter
from serving.torchserve.tokens import HEADER_FILE

KUBERNETES = ROOT / "deploy" / "kubernetes"
CONTAINERFILE = (ROOT / "deploy" / "Containerfile").read_text()
# The oldest with sidecar containers, and the newest that kubernetes_validate knows.
RELEASES = ["1.29", "1.37"]
EDGE_PORT, EXPORTER_PORT = 8443, Settings().exporter_port
LIVENESS = "/livez"

Manifest = dict[str, Any]


@pytest.fixture(scope="module", params=["base", "overlays/example"])
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    """Return what `kubectl apply -k` sends."""
    if not (program := shutil.which("kubectl")):
        if os.environ.get("CI"):
            pytest.fail("kubectl is missing")
        pytest.skip("kubectl is missing")
    command = [program, "kustomize", KUBERNETES / request.param]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


def of_kind(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    """Return the only manifest of a kind, or of this name."""
    return next(
        each
        for each in manifests
        if each["kind"] == kind and name in (None, each["metadata"]["name"])
    )


@pytest.fixture
def pod(manifests: list[Manifest]) -> Manifest:
    spec: Manifest = of_kind(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def containers(pod: Manifest) -> list[Manifest]:
    """Return the service and the edge."""
    return [*pod["initContainers"], *pod["containers"]]


def environment(container: Manifest) -> dict[str, str | None]:
    return {each["name"]: each.get("value") for each in container["env"]}


@pytest.mark.parametrize("release", RELEASES)
def test_every_manifest_is_valid(manifests: list[Manifest], release: str) -> None:
    for manifest in manifests:
        kubernetes_validate.validate(manifest, release, strict=True)


def test_containers_are_confined(pod: Manifest, containers: list[Manifest]) -> None:
    user = pod["securityContext"]
    assert (user["runAsNonRoot"], user["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}" in CONTAINERFILE
    # Service links would set variables with the names of ours, such as SERVICE_PORT.
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    for container in containers:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"].keys() == {"requests", "limits"}
        for bounds in container["resources"].values():
            assert bounds.keys() == {"cpu", "memory"}


def test_both_containers_write_to_the_same_bounded_volumes(
    pod: Manifest, containers: list[Manifest]
) -> None:
    ((run_dir, tmp),) = re.findall(r'^VOLUME \["(.+)", "(.+)"\]$', CONTAINERFILE, re.M)
    volumes = {each["name"]: each for each in pod["volumes"]}
    for container in containers:
        writable = {
            mount["mountPath"]: volumes[mount["name"]]
            for mount in container["volumeMounts"]
            if not mount.get("readOnly")
        }
        assert writable.keys() == {run_dir, tmp}
        assert all("sizeLimit" in volume["emptyDir"] for volume in writable.values())
        assert environment(container)["RUN_DIR"] == run_dir


def test_the_service_has_the_resources_and_archives_of_its_versions(
    manifests: list[Manifest], containers: list[Manifest], tmp_path: Path
) -> None:
    """Java uses 380 MB, page and supervisor 300, a worker 71; a large image is decoded in 300."""
    (text,) = of_kind(manifests, "ConfigMap")["data"].values()
    (tmp_path / "deployment.yaml").write_text(text)
    wanted = deployment.load(tmp_path / "deployment.yaml")
    assert all((ROOT / "models" / name / "golden.json").exists() for name in wanted.versions)
    workers = sum(version.workers for version in wanted.versions.values())
    requested, limits = (containers[0]["resources"][kind] for kind in ("requests", "limits"))
    assert int(requested["memory"].removesuffix("Mi")) >= 680 + 71 * workers
    assert int(limits["memory"].removesuffix("Mi")) >= 680 + 71 * workers + 300
    assert int(requested["cpu"]) >= wanted.versions[wanted.default].workers


def test_only_the_edge_and_the_metrics_are_reachable(
    manifests: list[Manifest], containers: list[Manifest]
) -> None:
    service, edge = containers
    assert service["ports"] == [{"name": "metrics", "containerPort": EXPORTER_PORT}]
    assert [name for name in environment(service) if name.endswith("_HOST")] == ["EXPORTER_HOST"]
    assert edge["ports"] == [{"name": "https", "containerPort": EDGE_PORT}]
    assert (
        environment(edge).items() >= {"EDGE_HOST": "0.0.0.0", "EDGE_PORT": str(EDGE_PORT)}.items()
    )
    assert f"EXPOSE {EDGE_PORT}\n" in CONTAINERFILE
    (port,) = of_kind(manifests, "Service", "bloodcells")["spec"]["ports"]
    assert port["targetPort"] == "https"
    policy = of_kind(manifests, "NetworkPolicy")["spec"]
    everyone, monitoring = policy["ingress"]
    assert everyone == {"ports": [{"port": "https", "protocol": "TCP"}]}
    assert monitoring["ports"] == [{"port": EXPORTER_PORT, "protocol": "TCP"}]
    assert monitoring["from"][0]["namespaceSelector"]["matchLabels"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert not policy.get("egress")


def test_prometheus_finds_each_pod(manifests: list[Manifest]) -> None:
    service = of_kind(manifests, "Service", "bloodcells-metrics")
    # A cluster IP would hide all pods but one.
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert [each["port"] for each in service["spec"]["ports"]] == [EXPORTER_PORT]
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "kubernetes.yml").read_text())
    (found,) = config["scrape_configs"][0]["dns_sd_configs"]
    namespace = service["metadata"].get("namespace", "laboratory")
    name = f"bloodcells-metrics.{namespace}.svc"
    assert found == {"names": [name], "type": "A", "port": EXPORTER_PORT}


def test_probes_and_time_to_drain(pod: Manifest, containers: list[Manifest]) -> None:
    service, edge = containers
    # A sidecar: the edge starts after it and stops before it.
    assert service["restartPolicy"] == "Always"
    started = service["startupProbe"]["exec"]["command"]
    assert started == ["test", "-s", f"{environment(service)['RUN_DIR']}/{HEADER_FILE}"]
    assert service["livenessProbe"]["httpGet"] == {"port": "metrics", "path": LIVENESS}
    for kind, path in (("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
        assert edge[kind]["httpGet"] == {"scheme": "HTTPS", "port": "https", "path": path}
    sleep = int(edge["lifecycle"]["preStop"]["exec"]["command"][1])
    # nginx's worker_shutdown_timeout, the grace period of the page, and that of Java.
    assert pod["terminationGracePeriodSeconds"] >= sleep + 60 + 25 + 10


def test_liveness_answers_while_uploads_block_the_page(tmp_path: Path) -> None:
    settings = free_settings(tmp_path / "run")
    exporter.clear(settings)
    page, threads = Flask("page"), 8
    blocked, released = threading.Semaphore(0), threading.Event()

    @page.post("/")
    def upload() -> str:
        blocked.release()
        released.wait(60)
        return "done"

    with (
        serving(page) as address,
        exporter.exported(settings, {}, dict),
        ThreadPoolExecutor(threads) as clients,
    ):
        try:
            uploads = [clients.submit(requests.post, address, timeout=60) for _ in range(threads)]
            assert all(blocked.acquire(timeout=60) for _ in range(threads))
            url = f"http://127.0.0.1:{settings.exporter_port}{LIVENESS}"
            assert requests.get(url, timeout=60).text == "ok\n"
            assert not any(upload.done() for upload in uploads)
        finally:
            released.set()


def test_every_selector_matches_the_pods(manifests: list[Manifest]) -> None:
    wanted = of_kind(manifests, "Deployment")["spec"]
    spread = wanted["template"]["spec"]["topologySpreadConstraints"]
    selectors = [
        wanted["selector"]["matchLabels"],
        of_kind(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        of_kind(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in spread),
        *(each["spec"]["selector"] for each in manifests if each["kind"] == "Service"),
    ]
    labels = wanted["template"]["metadata"]["labels"].items()
    assert all(selector.items() <= labels for selector in selectors)


def test_secrets_are_in_the_readme_but_not_in_git(manifests: list[Manifest]) -> None:
    assert "Secret" not in {each["kind"] for each in manifests}
    pod = yaml.safe_dump(of_kind(manifests, "Deployment"))
    names = re.findall(r"secretName: (\S+)|secretKeyRef:\s+key: \S+\s+name: (\S+)", pod)
    readme = (KUBERNETES / "README.md").read_text()
    assert len(names) == 3
    assert all(f" {volume or variable} " in readme for volume, variable in names)


def test_the_image_has_no_build_tools_and_no_root_user() -> None:
    shipped = CONTAINERFILE.rpartition("\nFROM ")[2]
    assert not re.search(r"\b(gcc|build-essential|make|pip install)\b", shipped)
    assert "\nUSER 10001:10001\n" in shipped
    assert shipped.endswith('\nCMD ["python", "-m", "serving", "run"]\n')


def test_the_pods_run_the_image_of_the_containerfile(containers: list[Manifest]) -> None:
    (tag,) = re.findall(r"build -f deploy/Containerfile -t (\S+)", CONTAINERFILE)
    assert {re.sub(r"^.*/|:.*$", "", each["image"]) for each in containers} == {tag}


def test_the_containerfile_copies_files_that_exist_and_are_not_ignored() -> None:
    ignore = (ROOT / "deploy" / "Containerfile.dockerignore").read_text()
    included = [line[1:] for line in ignore.splitlines() if line.startswith("!")]
    for line in re.findall(r"^COPY (?!--)(.+)$", CONTAINERFILE, re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert any(f"{source}/".startswith(f"{path}/") for path in included), source
