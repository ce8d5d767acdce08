"""The deployment: the desired versions, their archives, and the routing of clients."""

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
