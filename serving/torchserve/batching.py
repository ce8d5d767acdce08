"""Shorten the time that TorchServe's queue waits to fill a batch, from milliseconds to nanoseconds.

While a batch has room, TorchServe waits `maxBatchDelay` for more requests, so a single request
always pays the full delay. The delay is at least 1 ms: 0 means 100 ms, and a negative number limits
batches to two. The wait is not needed: while the workers are busy, the queue fills by itself.

The unit is one constant of one class in TorchServe's jar. A patched copy of this class is put
before the jar on Java's class path; the jar itself is not changed. In an unknown release of
TorchServe nothing is patched, and model-config.yaml counts in milliseconds.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

JAR = "model-server.jar"
# Its `pollBatch` takes the requests of a batch from the queue.
CLASS = "org/pytorch/serve/wlm/Model.class"
# In TorchServe 0.12.0. Its other uses of milliseconds are unlimited waits and features that this
# service does not use (sequences of requests).
SHA256 = "7c5523f1fe77fe79aa32665469e17725e70518692abcf4987989ef72f10d4cff"


def write_patched_class(jars: Path, classes: Path) -> bool:
    """Write the class with its waits in nanoseconds; return False if the class is unknown."""
    with zipfile.ZipFile(jars / JAR) as jar:
        code = jar.read(CLASS)
    if hashlib.sha256(code).hexdigest() != SHA256:
        return False
    target = classes / CLASS
    target.parent.mkdir(parents=True)
    target.write_bytes(code.replace(_constant("MILLISECONDS"), _constant("NANOSECONDS")))
    return True


def _constant(text: str) -> bytes:
    """Encode a string as a class file does: tag, length, bytes (JVMS 4.4.7)."""
    return b"\x01" + len(text).to_bytes(2, "big") + text.encode("ascii")
