"""What an installation takes along is written down, package by package."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support import lock, sbom


def test_the_bill_of_a_wheel_names_all_that_it_takes_along(tmp_path: Path) -> None:
    wheel = tmp_path / f"hopaas_p2p-{metadata.version(sbom.PROJECT)}-py3-none-any.whl"
    wheel.write_bytes(b"a wheel")
    sbom.main([str(wheel)])
    (written,) = tmp_path.glob("*.cdx.json")
    bill = json.loads(written.read_text())
    found = {component["name"]: component["version"] for component in bill["components"]}
    assert {"optuna", "sqlalchemy", "psycopg2-binary", "certifi", "urllib3", "numpy"} <= found.keys()
    assert not {"pytest", "streamlit", sbom.PROJECT} & found.keys(), "what an extra brings is not taken along"
    assert found["optuna"] == metadata.version("optuna")
    refs = {component["bom-ref"] for component in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]}
    assert {ref for one in bill["dependencies"] for ref in [one["ref"], *one["dependsOn"]]} == refs


@pytest.mark.parametrize("path", sorted(lock.FOLDER.glob("py*.txt")), ids=lambda path: path.stem)
def test_a_lock_file_has_a_version_and_a_hash_of_all_that_the_tests_need(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    locked = {}
    for line in lines:
        found = re.fullmatch(r"([a-z0-9.-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line)
        assert found, f"no place and nothing else is named: {line}"
        locked[found[1]] = found[2]
    assert len(locked) == len(lines)
    project = tomllib.loads((lock.ROOT / "pyproject.toml").read_text())["project"]
    wanted, extras = [*project["dependencies"]], lock.EXTRAS.split(",")
    for extra in extras:  # grows by those that one of them names
        wanted += project["optional-dependencies"][extra]
        own = [one for one in map(Requirement, project["optional-dependencies"][extra]) if one.name == project["name"]]
        extras += [one for requirement in own for one in sorted(requirement.extras) if one not in extras]
    for requirement in map(Requirement, [*wanted, lock.BUILD]):
        if requirement.name == project["name"]:
            continue
        name = requirement.name.lower().replace("_", "-")
        assert requirement.specifier.contains(locked[name]), f"{requirement}: python -m tests.support.lock"
