"""How long TorchServe's queue waits to fill a batch: nanoseconds, where TorchServe counts in ms.

While a batch has room, TorchServe waits `maxBatchDelay` for more requests, and a lone one pays for
that in full: 1 ms at least, as 0 means 100 and less than 0 caps batches at two. But nothing need
wait: while the workers are busy the queue fills by itself, and what stands there is a batch.

The unit is one constant of one class in TorchServe's jar. A copy of this class with another
constant goes before the jar on Java's class path. The jar itself stays as it is, and so does the
wait if it is that of another TorchServe: then model-config.yaml counts in milliseconds again.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

JAR = "model-server.jar"
# Its `pollBatch` takes the requests of a batch from the queue.
CLASS = "org/pytorch/serve/wlm/Model.class"
# Of TorchServe 0.12.0. What else it counts in milliseconds are waits without end, and those of
# features that this service does not use (sequences of requests).
SHA256 = "7c5523f1fe77fe79aa32665469e17725e70518692abcf4987989ef72f10d4cff"


def put_impatient_class(jars: Path, classes: Path) -> bool:
    """Write the class of the jar with its waits in nanoseconds; tell if it is the one known."""
    with zipfile.ZipFile(jars / JAR) as jar:
        code = jar.read(CLASS)
    if hashlib.sha256(code).hexdigest() != SHA256:
        return False
    target = classes / CLASS
    target.parent.mkdir(parents=True)
    target.write_bytes(code.replace(_constant("MILLISECONDS"), _constant("NANOSECONDS")))
    return True


def _constant(text: str) -> bytes:
    """Encode a string as a class file holds it: a tag, its length, its bytes (JVMS 4.4.7)."""
    return b"\x01" + len(text).to_bytes(2, "big") + text.encode("ascii")
