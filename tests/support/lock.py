"""Writes .ci/requirements/py3XX.txt: every package that the tests take along, with its version and hash.

    python -m tests.support.lock          for the Python that runs it; takes some minutes

Then, where nothing else shall be installed than what was tried:

    python -m pip install --require-hashes --no-deps -r .ci/requirements/py311.txt
    python -m pip install --no-deps --no-build-isolation --editable .
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".ci" / "requirements"
EXTRAS = "test,all-tests,check,ci"
BUILD = "hatchling>=1.27"  # for the project itself, which is built without isolation
_HEAD = (
    f"# hopaas-p2p[{EXTRAS}] as it was tried with Python {sys.version_info.major}.{sys.version_info.minor} on "
    f"{sys.platform}: python -m tests.support.lock\n"
)


def lines(report: dict[str, Any]) -> list[str]:
    """The lines of the file, from what `pip install --report` says."""
    found = []
    for one in report["install"]:
        name, version = one["metadata"]["name"].lower().replace("_", "-"), one["metadata"]["version"]
        hashes = one["download_info"].get("archive_info", {}).get("hashes", {})
        if name != "hopaas-p2p":
            found.append(f"{name}=={version} --hash=sha256:{hashes['sha256']}\n")
    return sorted(found)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.json")
        command = ["install", "--quiet", "--dry-run", "--ignore-installed", "--report", str(report)]
        subprocess.run([sys.executable, "-m", "pip", *command, f"{ROOT}[{EXTRAS}]", BUILD], check=True)
        found = lines(json.loads(report.read_text()))
    target = FOLDER / f"py{sys.version_info.major}{sys.version_info.minor}.txt"
    target.write_text("".join([_HEAD, *found]))
    print(f"{len(found)} packages in {target}")


if __name__ == "__main__":
    main()
