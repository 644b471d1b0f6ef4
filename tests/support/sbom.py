"""A bill of materials for a wheel, in CycloneDX: `python -m tests.support.sbom dist/*.whl`; `make wheel` calls it.

It lists what an installation takes along: the packages that the wheel requires, and what these require, as they are
installed in the environment that this runs in. It stands beside the wheel, with `.cdx.json` at the end.
"""

from __future__ import annotations

import hashlib
import json
import sys
import uuid
from collections import deque
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT: Final = "hopaas-p2p"


def bill(wheel: Path) -> dict[str, Any]:
    """The bill of this wheel."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    needs = _closure()
    version = wheel.name.split("-")[1]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.UUID(digest[:32])}",  # the same wheel, the same bill
        "version": 1,
        "metadata": {
            "component": {
                **_component(PROJECT, version),
                "type": "application",
                "hashes": [{"alg": "SHA-256", "content": digest}],
            }
        },
        "components": [_component(name, metadata.version(name)) for name in sorted(needs) if name != PROJECT],
        "dependencies": [
            {
                "ref": _purl(name, _version(name, version)),
                "dependsOn": sorted(_purl(need, _version(need, version)) for need in found),
            }
            for name, found in sorted(needs.items())
        ],
    }


def _closure() -> dict[str, set[str]]:
    """What each package requires here, from the project on."""
    found: dict[str, set[str]] = {}
    queue = deque([(PROJECT, "")])
    seen = set(queue)
    while queue:
        name, extra = queue.popleft()
        needs = found.setdefault(name, set())
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            need = canonicalize_name(requirement.name)
            needs.add(need)
            for wanted in {(need, ""), *((need, one) for one in requirement.extras)} - seen:
                seen.add(wanted)
                queue.append(wanted)
    return found


def _version(name: str, own: str) -> str:
    return own if name == PROJECT else metadata.version(name)


def _purl(name: str, version: str) -> str:
    return f"pkg:pypi/{canonicalize_name(name)}@{version}"


def _component(name: str, version: str) -> dict[str, Any]:
    about = metadata.metadata(name)
    component = {"type": "library", "name": name, "version": version, "bom-ref": _purl(name, version)}
    component["purl"] = component["bom-ref"]
    licence = about.get("License-Expression") or _classified(about.get_all("Classifier") or [])
    return (
        {
            **component,
            "licenses": [
                {"expression": licence} if about.get("License-Expression") else {"license": {"name": licence}}
            ],
        }
        if licence
        else component
    )


def _classified(classifiers: list[str]) -> str:
    names = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License :: ")]
    return ", ".join(names)


def main(wheels: list[str]) -> None:
    """Write the bill of each wheel beside it."""
    for name in wheels:
        wheel = Path(name)
        target = wheel.with_name(f"{wheel.name.removesuffix('.whl')}.cdx.json")
        target.write_text(json.dumps(bill(wheel), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
