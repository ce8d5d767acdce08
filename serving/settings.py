"""Where the service listens and where it keeps its files; each port is an environment variable."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
MODEL = "bloodcells"
VERSION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class SettingsError(Exception):
    """A setting can't be used; the message says which and what to do."""


@dataclass(frozen=True)
class Settings:
    """Ports and folders of one running service."""

    inference_port: int = 8080
    management_port: int = 8081
    metrics_port: int = 8082
    exporter_port: int = 8083
    frontend_port: int = 5000
    grpc_inference_port: int = 7070
    grpc_management_port: int = 7071
    # Not one of `ports`: the edge comes and goes beside the service.
    edge_port: int = 8443
    # Where Prometheus is on another machine, as it is for a pod; it tells counts, and asks no key.
    exporter_host: str = HOST
    run_dir: Path = field(default=ROOT / ".run")
    model_store: Path = field(default=ROOT / "model_store")
    deployment: Path = field(default=ROOT / "deployment.yaml")
    config: Path = field(default=ROOT / "config.properties")

    @classmethod
    def from_environment(cls) -> Settings:
        """Read INFERENCE_PORT, MANAGEMENT_PORT, METRICS_PORT, FRONTEND_PORT and their like."""
        default = cls()
        return replace(
            default,
            **{name.lower(): _port(name, port) for name, port in default.ports.items()},
            edge_port=_port("EDGE_PORT", default.edge_port),
            exporter_host=os.environ.get("EXPORTER_HOST") or HOST,
            run_dir=_path("RUN_DIR", default.run_dir),
            model_store=_path("MODEL_STORE", default.model_store),
            deployment=_path("DEPLOYMENT", default.deployment),
            config=_path("CONFIG", default.config),
        )

    def host_of(self, variable: str) -> str:
        """Return the address on which a port of `ports` is opened."""
        return self.exporter_host if variable == "EXPORTER_PORT" else HOST

    @property
    def archives(self) -> Path:
        return self.run_dir / "archives"

    @property
    def metrics(self) -> Path:
        return self.run_dir / "metrics"

    @property
    def edge_note(self) -> Path:
        """Return where the edge notes how it can be watched, while it is open."""
        return self.run_dir / "edge" / "running.json"

    @property
    def inference_url(self) -> str:
        return f"http://{HOST}:{self.inference_port}"

    @property
    def management_url(self) -> str:
        return f"http://{HOST}:{self.management_port}"

    @property
    def frontend_url(self) -> str:
        return f"http://{HOST}:{self.frontend_port}"

    @property
    def ports(self) -> dict[str, int]:
        """Return every port of TorchServe and the page by the name of its environment variable."""
        return {
            name.upper(): getattr(self, name)
            for name in self.__dataclass_fields__
            if name.endswith("_port") and name != "edge_port"
        }


def _path(name: str, default: Path) -> Path:
    return Path(os.environ.get(name) or default).resolve()


def _port(name: str, default: int) -> int:
    value = os.environ.get(name) or str(default)
    if not value.isdecimal() or not 0 < int(value) < 65536:
        raise SettingsError(f"{name} must be a port number from 1 to 65535, not {value!r}.")
    return int(value)
