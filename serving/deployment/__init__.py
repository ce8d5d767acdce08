"""The deployment: which versions are to serve, from which archives, and how clients are routed."""

from serving.deployment.history import Busy, History, change
from serving.deployment.spec import Canary, Deployment, DeploymentError, VersionSpec, load, save

__all__ = [
    "Busy",
    "Canary",
    "Deployment",
    "DeploymentError",
    "History",
    "VersionSpec",
    "change",
    "load",
    "save",
]
