"""Write docs/sbom.json, and ask of each Python package whether a weakness is known: `make audit`.

Exit codes: 0 none is known; 1 some are; 2 nobody could be asked. Java's libraries are not asked of.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scripts import sbom

KNOWN, NOT_ASKED = 1, 2


def main() -> int:
    """Write the bill of materials, and print what is known of its packages."""
    sbom.SBOM.write_text(sbom.text())
    print(f"wrote {sbom.SBOM.relative_to(sbom.ROOT)}")
    packages = [
        f"{each['name']}=={each['version']}"
        for each in sbom.document()["components"]
        if each.get("purl", "").startswith("pkg:pypi/")
    ]
    answers = ask(packages)
    if answers is None:
        print(
            "NOT AUDITED: the database of known weaknesses (OSV) can't be reached from here. "
            "Run `make audit` where it can be, or give docs/sbom.json to a scanner of your own.",
            file=sys.stderr,
        )
        return NOT_ASKED
    known = [answer for answer in answers if answer.get("vulns")]
    for answer in known:
        names = ", ".join(each["id"] for each in answer["vulns"])
        print(f"{answer['name']} {answer['version']}: {names}")
    skipped = [answer["name"] for answer in answers if "skip_reason" in answer]
    if skipped:
        print(f"nothing is known, good or bad, of {', '.join(skipped)}")
    print(f"{len(known)} of {len(answers)} packages have known weaknesses")
    return KNOWN if known else 0


def ask(packages: list[str]) -> list[dict[str, Any]] | None:
    """Return what pip-audit knows of each package; None if it could ask nobody."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, said = Path(folder) / "requirements.txt", Path(folder) / "said.json"
        wanted.write_text("\n".join(packages))
        command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv"]
        command += ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--timeout", "15"]
        command += ["--format", "json", "--output", str(said), "--requirement", str(wanted)]
        subprocess.run(command, capture_output=True, check=False)
        # It ends by 1 for a weakness as for a failure, but only the former is written.
        if not said.exists() or not (text := said.read_text()):
            return None
    answers: list[dict[str, Any]] = json.loads(text)["dependencies"]
    return answers


if __name__ == "__main__":
    sys.exit(main())
