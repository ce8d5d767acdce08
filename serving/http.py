"""HTTP to servers on this machine."""

from __future__ import annotations

import requests
from requests.adapters import HTTPAdapter


def local_session(pool_size: int = 1) -> requests.Session:
    """Return a session that uses no proxy and no password from .netrc."""
    session = requests.Session()
    session.trust_env = False
    session.mount("http://", HTTPAdapter(pool_maxsize=pool_size))
    return session
