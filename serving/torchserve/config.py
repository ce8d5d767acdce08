"""TorchServe's configuration: config.properties, and what the settings and deployment add to it."""

from __future__ import annotations

import json
from pathlib import Path

from serving.deployment import Deployment, archives
from serving.settings import HOST, MODEL, Settings
from serving.torchserve import StartError

METRICS_CONFIG = Path(__file__).with_name("metrics.yaml")


def effective_config(settings: Settings, deployment: Deployment) -> dict[str, str]:
    """Return config.properties with this service's ports, folders and versions.

    Raises StartError.
    """
    config = read_properties(settings.config)
    names = {version: archives.deployed(settings, version).name for version in deployment.versions}
    # The first version becomes the default. `all` would load them in the order of the disk.
    order = sorted(names, key=lambda version: version != deployment.default)
    return config | {
        "load_models": ",".join(names[version] for version in order),
        # The number of workers is set only here: minWorkers in an archive's model-config.yaml
        # would take precedence.
        "models": json.dumps(
            {
                MODEL: {
                    name: {
                        "marName": names[name],
                        "minWorkers": version.workers,
                        "maxWorkers": version.workers,
                    }
                    for name, version in deployment.versions.items()
                }
            }
        ),
        "inference_address": settings.inference_url,
        "management_address": settings.management_url,
        "metrics_address": f"http://{HOST}:{settings.metrics_port}",
        "grpc_inference_port": str(settings.grpc_inference_port),
        "grpc_management_port": str(settings.grpc_management_port),
        # They need a script that is not in our model server home.
        "disable_system_metrics": "true",
        "metrics_config": str(METRICS_CONFIG),
        # The default is the model store. An empty folder disables the workflow API.
        "workflow_store": str(settings.run_dir / "workflows"),
    }


def read_properties(path: Path) -> dict[str, str]:
    """Read the subset of Java's properties format that TorchServe's launcher reads.

    Raises StartError.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise StartError(f"{path} can't be read: {error.strerror}.") from error
    lines = (line.strip() for line in text.splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}


def token_life(config: Path) -> float:
    """Return for how many seconds a new token is valid; raise StartError."""
    minutes = read_properties(config).get("token_expiration_min", "60")
    try:
        return 60 * float(minutes)
    except ValueError:
        raise StartError(f"{config}: token_expiration_min is not a number: {minutes!r}.") from None


def to_properties(config: dict[str, str]) -> str:
    """Format settings as Java reads them: Latin-1, so everything beyond ASCII is escaped."""
    text = "".join(f"{key}={value}\n" for key, value in config.items())
    units = text.encode("utf-16-be")
    codes = (int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2))
    return "".join(chr(code) if code < 128 else f"\\u{code:04x}" for code in codes)
