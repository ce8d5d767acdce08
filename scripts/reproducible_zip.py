"""Repack a model archive without timestamps, so that equal contents give equal bytes.

torch-model-archiver writes the time into the manifest and into each entry of the zip file. Two
builds of the same content would therefore have different hashes.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from pathlib import Path

from serving.files import atomic_write

# The earliest time that a zip file can hold.
EPOCH = (1980, 1, 1, 0, 0, 0)
MANIFEST = "MAR-INF/MANIFEST.json"


def repack(source: Path, target: Path) -> None:
    """Copy the entries of a zip file in order of their names, with fixed times and modes.

    Its SHA-256 is written to NAME.sha256.
    """
    with (
        zipfile.ZipFile(source) as old,
        atomic_write(target) as file,
        zipfile.ZipFile(file, "w") as new,
    ):
        for name in sorted(name for name in old.namelist() if not name.endswith("/")):
            content = old.read(name)
            if name == MANIFEST:
                manifest = json.loads(content)
                manifest["createdOn"] = "01/01/1980 00:00:00"
                content = json.dumps(manifest, indent=2, sort_keys=True).encode()
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_STORED
            new.writestr(entry, content)
    # In the format of sha256sum.
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    with atomic_write(target.with_name(f"{target.name}.sha256")) as file:
        file.write(f"{digest}  {target.name}\n".encode())


if __name__ == "__main__":
    repack(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"built {sys.argv[2]}")
