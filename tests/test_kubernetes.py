"""The manifests: rendered, valid by Kubernetes' own schemas, and true to what they run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from frontend import create_app
from serving import deployment
from serving.settings import ROOT, Settings
from serving.torchserve.tokens import HEADER_FILE

KUBERNETES = ROOT / "deploy" / "kubernetes"
CONTAINERFILE = (ROOT / "deploy" / "Containerfile").read_text()
# The oldest that knows sidecars, and what was newest.
RELEASES = ["1.29", "1.37"]
EDGE_PORT, EXPORTER_PORT = 8443, Settings().exporter_port


@pytest.fixture(scope="module", params=["base", "overlays/example"])
def manifests(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Return what `kubectl apply -k` would send."""
    program = shutil.which("kubectl")
    if not program:
        if os.environ.get("CI"):
            pytest.fail("kubectl is missing")
        pytest.skip("kubectl, which Debian does not have, is missing")
    done = subprocess.run(
        [program, "kustomize", KUBERNETES / request.param],
        capture_output=True,
        text=True,
        check=True,
    )
    return list(yaml.safe_load_all(done.stdout))


def of_kind(manifests: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    (found,) = [
        each
        for each in manifests
        if each["kind"] == kind and name in (None, each["metadata"]["name"])
    ]
    return found


@pytest.fixture
def pod(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = of_kind(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def service(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod["initContainers"]
    return dict(found)


@pytest.fixture
def edge(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod["containers"]
    return dict(found)


@pytest.fixture
def containers(service: dict[str, Any], edge: dict[str, Any]) -> list[dict[str, Any]]:
    return [service, edge]


@pytest.mark.parametrize("release", RELEASES)
def test_every_manifest_is_valid(manifests: list[dict[str, Any]], release: str) -> None:
    for manifest in manifests:
        kubernetes_validate.validate(manifest, release, strict=True)


def test_a_manifest_with_a_mistyped_key_is_not() -> None:
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"port": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, RELEASES[0], strict=True)


def test_every_file_is_rendered() -> None:
    for folder in (KUBERNETES / "base", KUBERNETES / "overlays" / "example"):
        named = (folder / "kustomization.yaml").read_text()
        for path in folder.iterdir():
            assert path.name == "kustomization.yaml" or path.name in named


def test_the_service_starts_before_the_edge_and_ends_after_it(service: dict[str, Any]) -> None:
    assert service["restartPolicy"] == "Always"
    assert "startupProbe" in service


def test_containers_are_confined(pod: dict[str, Any], containers: list[dict[str, Any]]) -> None:
    user = pod["securityContext"]
    assert user["runAsNonRoot"] is True
    assert user["seccompProfile"] == {"type": "RuntimeDefault"}
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}" in CONTAINERFILE
    assert pod["automountServiceAccountToken"] is False
    # Kubernetes would set SERVICE_PORT=tcp://... for each Service; ours have such names.
    assert pod["enableServiceLinks"] is False
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    for container in containers:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_what_is_written_goes_to_folders_that_both_share(
    pod: dict[str, Any], containers: list[dict[str, Any]]
) -> None:
    (line,) = re.findall(r'^VOLUME \["(.+)", "(.+)"\]$', CONTAINERFILE, re.M)
    volumes = {each["name"]: each for each in pod["volumes"]}
    for container in containers:
        writable = {
            mount["mountPath"]: volumes[mount["name"]]
            for mount in container["volumeMounts"]
            if not mount.get("readOnly")
        }
        assert writable.keys() == set(line)
        assert all("sizeLimit" in volume["emptyDir"] for volume in writable.values())
        environment = {each["name"]: each.get("value") for each in container["env"]}
        assert environment["RUN_DIR"] in writable


def test_resources_are_bounded(containers: list[dict[str, Any]]) -> None:
    for container in containers:
        assert container["resources"].keys() == {"requests", "limits"}
        for bounds in container["resources"].values():
            assert bounds.keys() == {"cpu", "memory"}


def test_the_service_has_room_for_its_versions(
    manifests: list[dict[str, Any]], service: dict[str, Any], tmp_path: Path
) -> None:
    """Java 380 MB, page and supervisor 210, a worker 71, and 250 once it has explained."""
    (text,) = of_kind(manifests, "ConfigMap")["data"].values()
    (tmp_path / "deployment.yaml").write_text(text)
    wanted = deployment.load(tmp_path / "deployment.yaml")
    workers = sum(version.workers for version in wanted.versions.values())
    memory = {
        kind: int(bounds["memory"].removesuffix("Mi"))
        for kind, bounds in service["resources"].items()
    }
    assert memory["requests"] >= 590 + 71 * workers
    assert memory["limits"] >= 590 + (71 + 250) * workers
    assert int(service["resources"]["requests"]["cpu"]) >= wanted.versions[wanted.default].workers


def test_every_version_that_serves_is_built(manifests: list[dict[str, Any]]) -> None:
    (text,) = of_kind(manifests, "ConfigMap")["data"].values()
    for version in yaml.safe_load(text)["versions"]:
        assert (ROOT / "models" / version / "golden.json").exists()


def test_only_the_edge_is_reached_and_metrics_by_prometheus(
    manifests: list[dict[str, Any]], service: dict[str, Any], edge: dict[str, Any]
) -> None:
    assert service["ports"] == [{"name": "metrics", "containerPort": EXPORTER_PORT}]
    own = {each["name"]: each.get("value") for each in service["env"]}
    assert {name for name in own if name.endswith("_HOST")} == {"EXPORTER_HOST"}
    assert edge["ports"] == [{"name": "https", "containerPort": EDGE_PORT}]
    assert EDGE_PORT not in {
        port for name, port in Settings().ports.items() if not name.startswith("EDGE")
    }
    environment = {each["name"]: each.get("value") for each in edge["env"]}
    assert (environment["EDGE_HOST"], environment["EDGE_PORT"]) == ("0.0.0.0", str(EDGE_PORT))
    assert f"EXPOSE {EDGE_PORT}\n" in CONTAINERFILE
    (port,) = of_kind(manifests, "Service", "bloodcells")["spec"]["ports"]
    assert port["targetPort"] == "https"
    policy = of_kind(manifests, "NetworkPolicy")["spec"]
    everyone, monitoring = policy["ingress"]
    assert everyone == {"ports": [{"port": "https", "protocol": "TCP"}]}
    assert monitoring["ports"] == [{"port": EXPORTER_PORT, "protocol": "TCP"}]
    (where,) = monitoring["from"]
    assert where["namespaceSelector"]["matchLabels"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert not policy.get("egress")


def test_prometheus_finds_each_pod(manifests: list[dict[str, Any]]) -> None:
    """By the address of each, as a common one would hide all but one."""
    service = of_kind(manifests, "Service", "bloodcells-metrics")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    (port,) = service["spec"]["ports"]
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "kubernetes.yml").read_text())
    (job,) = config["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    namespace = service["metadata"].get("namespace", "laboratory")
    assert found["names"] == [f"bloodcells-metrics.{namespace}.svc"]
    assert (found["port"], found["type"]) == (port["port"], "A")
    assert port["port"] == EXPORTER_PORT


def test_probes_ask_what_is_there_and_tells_the_truth(
    service: dict[str, Any], edge: dict[str, Any]
) -> None:
    paths = {str(rule) for rule in create_app({"SECRET_KEY": "test"}).url_map.iter_rules()}
    run_dir = next(each["value"] for each in service["env"] if each["name"] == "RUN_DIR")
    started = service["startupProbe"]["exec"]["command"]
    assert started == ["test", "-s", f"{run_dir}/{HEADER_FILE}"]
    (asked,) = re.findall(
        r"127\.0\.0\.1:(\d+)(/\w+)", service["livenessProbe"]["exec"]["command"][-1]
    )
    assert int(asked[0]) == Settings().frontend_port
    probes = {kind: edge[f"{kind}Probe"]["httpGet"] for kind in ("readiness", "liveness")}
    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "readiness": "/readyz",
        "liveness": "/healthz",
    }
    assert {asked[1], *(probe["path"] for probe in probes.values())} <= paths
    assert all((probe["scheme"], probe["port"]) == ("HTTPS", "https") for probe in probes.values())


def test_a_pod_has_time_to_drain(pod: dict[str, Any], edge: dict[str, Any]) -> None:
    sleep = int(edge["lifecycle"]["preStop"]["exec"]["command"][1])
    # nginx's worker_shutdown_timeout, the page's grace, Java's.
    assert pod["terminationGracePeriodSeconds"] >= sleep + 60 + 25 + 10


def test_one_pod_at_a_time_is_taken_away(manifests: list[dict[str, Any]]) -> None:
    wanted = of_kind(manifests, "Deployment")
    assert wanted["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert of_kind(manifests, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    scaled = of_kind(manifests, "HorizontalPodAutoscaler")["spec"]
    assert scaled["scaleTargetRef"]["name"] == wanted["metadata"]["name"]
    # A number of the Deployment's own would undo the autoscaler's with each `apply`.
    assert "replicas" not in wanted["spec"]
    assert scaled["minReplicas"] >= 3
    # Of what is measured as a share, which falls again.
    assert [each["resource"]["target"]["type"] for each in scaled["metrics"]] == ["Utilization"]


def test_every_selector_finds_the_pods(manifests: list[dict[str, Any]]) -> None:
    wanted = of_kind(manifests, "Deployment")["spec"]
    labels = wanted["template"]["metadata"]["labels"].items()
    for name in ("bloodcells", "bloodcells-metrics"):
        assert of_kind(manifests, "Service", name)["spec"]["selector"].items() <= labels
    selectors = [
        wanted["selector"],
        of_kind(manifests, "PodDisruptionBudget")["spec"]["selector"],
        of_kind(manifests, "NetworkPolicy")["spec"]["podSelector"],
        *(
            each["labelSelector"]
            for each in wanted["template"]["spec"]["topologySpreadConstraints"]
        ),
    ]
    for selector in selectors:
        assert selector["matchLabels"].items() <= labels


def test_secrets_are_named_in_the_readme_and_never_in_git(
    manifests: list[dict[str, Any]], pod: dict[str, Any], service: dict[str, Any]
) -> None:
    assert "Secret" not in {each["kind"] for each in manifests}
    names = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    names |= {
        each["valueFrom"]["secretKeyRef"]["name"] for each in service["env"] if "valueFrom" in each
    }
    readme = (KUBERNETES / "README.md").read_text()
    assert names
    assert all(f" {name} " in readme for name in names)


def test_the_image_is_what_the_containerfile_builds(
    manifests: list[dict[str, Any]], containers: list[dict[str, Any]]
) -> None:
    (tag,) = re.findall(r"build -f deploy/Containerfile -t (\S+)", CONTAINERFILE)
    for container in containers:
        name = container["image"].partition(":")[0].rpartition("/")[2]
        assert name == tag


class TestContainerfile:
    def test_what_it_copies_is_there_and_not_ignored(self) -> None:
        ignored = (ROOT / "deploy" / "Containerfile.dockerignore").read_text().splitlines()
        for line in re.findall(r"^COPY (?!--)(.+)$", CONTAINERFILE, re.M):
            for source in line.split()[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in ignored

    def test_nothing_is_compiled_or_run_as_root_in_what_ships(self) -> None:
        shipped = CONTAINERFILE.rpartition("\nFROM ")[2]
        assert not re.search(r"\b(gcc|build-essential|make|pip install)\b", shipped)
        assert re.findall(r"^USER (.+)$", shipped, re.M) == ["10001:10001"]

    def test_the_service_is_process_1(self) -> None:
        assert re.findall(r"^(?:CMD|ENTRYPOINT) (.+)$", CONTAINERFILE, re.M) == [
            '["python", "-m", "serving", "run"]'
        ]
