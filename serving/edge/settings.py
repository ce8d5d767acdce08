"""The settings of the edge: the environment variables EDGE_HOST, EDGE_CERTIFICATE and others."""

from __future__ import annotations

import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from serving.settings import HOST, EnvironmentSettings, Settings


def _readable(path: Path) -> Path:
    # Do not resolve links: Kubernetes updates a mounted Secret by replacing a link.
    path = path.absolute()
    if not os.access(path, os.R_OK):
        raise ValueError("must be a file that can be read")
    return path


def _split(text: object) -> object:
    return [part.strip() for part in text.split(",")] if isinstance(text, str) else text


ReadableFile = Annotated[Path, AfterValidator(_readable)]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_split)]


class EdgeSettings(EnvironmentSettings):
    """Where the edge listens and how it identifies itself."""

    model_config = SettingsConfigDict(env_prefix="EDGE_")

    host: str = Field(default=HOST, pattern=r"^[A-Za-z0-9.:\[\]-]+$")
    certificate: ReadableFile | None = None
    certificate_key: ReadableFile | None = None
    # Requests per second and client; bursts may be twice as large.
    rate: int = Field(default=200, ge=1, le=100_000)
    # A container may see more cores than it may use, and each process keeps connections to the
    # page, which has few.
    processes: int = Field(default=min(os.cpu_count() or 1, 4), ge=1, le=16)
    page: bool = True
    # Proxies whose X-Real-IP header is trusted.
    front: Networks = ()

    @model_validator(mode="after")
    def _check_pair(self) -> EdgeSettings:
        if (self.certificate is None) != (self.certificate_key is None):
            raise ValueError("EDGE_CERTIFICATE and EDGE_CERTIFICATE_KEY belong together")
        return self


def keys_path(settings: Settings) -> Path:
    """Return the file of API keys: EDGE_KEYS, or in RUN_DIR."""
    return Path(os.environ.get("EDGE_KEYS") or settings.run_dir / "edge-keys.json").absolute()
