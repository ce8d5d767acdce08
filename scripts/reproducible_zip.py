"""Pack a model archive anew without the time of day, so that equal contents give equal bytes.

torch-model-archiver writes the time into the manifest and into each entry of the zip file. Two
builds of one version would then differ, and a hash could not tell whether the content does.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zipfile
from pathlib import Path

# The earliest time that a zip file can hold.
EPOCH = (1980, 1, 1, 0, 0, 0)
MANIFEST = "MAR-INF/MANIFEST.json"


def repack(source: Path, target: Path) -> None:
    """Copy the entries of a zip file in order of their names, with fixed times and modes.

    Its SHA-256 is written beside it.
    """
    partial = target.with_suffix(f".{os.getpid()}.partial")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(partial, "w") as new:
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
    # What whoever takes the archive will check, in the format of sha256sum.
    digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    target.with_name(f"{target.name}.sha256").write_text(f"{digest}  {target.name}\n")
    # A reader never sees half an archive.
    partial.replace(target)


if __name__ == "__main__":
    repack(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"built {sys.argv[2]}")
