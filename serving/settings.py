"""Where the service listens and keeps its files. Each setting is an environment variable."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
MODEL = "bloodcells"
VERSION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

Port = Annotated[int, Field(ge=1, le=65535)]
ResolvedPath = Annotated[Path, AfterValidator(Path.resolve)]


class SettingsError(Exception):
    """A setting is invalid; the message names its variable and explains what is allowed."""


class EnvironmentSettings(BaseSettings):
    """Settings that come from environment variables named after the fields."""

    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True)

    @classmethod
    def from_environment(cls) -> Self:
        """Read the environment; raise SettingsError."""
        try:
            return cls()
        except ValidationError as error:
            first = error.errors()[0]
            message = first["msg"].removeprefix("Value error, ")
            if first["loc"]:
                variable = f"{cls.model_config.get('env_prefix', '')}{first['loc'][0]}".upper()
                message = f"{variable} is {first['input']!r}: {message}"
            raise SettingsError(f"{message}.") from error


class Settings(EnvironmentSettings):
    """Ports and folders of one running service."""

    inference_port: Port = 8080
    management_port: Port = 8081
    metrics_port: Port = 8082
    exporter_port: Port = 8083
    frontend_port: Port = 5000
    grpc_inference_port: Port = 7070
    grpc_management_port: Port = 7071
    # Not one of `ports`: the edge starts and stops on its own.
    edge_port: Port = 8443
    # For a Prometheus on another machine. The exporter shows only counts, and needs no key.
    exporter_host: str = HOST
    run_dir: ResolvedPath = ROOT / ".run"
    model_store: ResolvedPath = ROOT / "model_store"
    deployment: ResolvedPath = ROOT / "deployment.yaml"
    config: ResolvedPath = ROOT / "config.properties"

    def host_of(self, variable: str) -> str:
        """Return the address that a port of `ports` is opened on."""
        return self.exporter_host if variable == "EXPORTER_PORT" else HOST

    @property
    def archives(self) -> Path:
        return self.run_dir / "archives"

    @property
    def metrics(self) -> Path:
        return self.run_dir / "metrics"

    @property
    def edge_note(self) -> Path:
        """Return the file in which a running edge describes how to monitor it."""
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
        """Return each port of TorchServe, the exporter and the page by its variable."""
        return {
            name.upper(): getattr(self, name)
            for name in type(self).model_fields
            if name.endswith("_port") and name != "edge_port"
        }
