"""What an installation takes along is written down, package by package."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

from tests.support import sbom


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
