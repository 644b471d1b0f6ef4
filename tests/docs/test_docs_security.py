"""The threat model is complete: each cell names tests that exist, or says that nothing holds it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.support.pages import ROOT

_ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
WHO = (
    "A stranger on the network",
    "Another user of the node",
    "A token without a grant",
    "A viewer",
    "A worker",
    "An owner",
    "An administrator",
    "Operators of proxies, buckets and file servers",
)


def _sections(page: str) -> dict[str, list[tuple[str, str, str]]]:
    """The rows below each heading."""
    parts = re.split(r"^## (.+)$", (ROOT / page).read_text(), flags=re.MULTILINE)[1:]
    rows = {
        heading: [row for row in _ROW.findall(text) if set(row[0]) != {"-"} and row[0] != "where"]
        for heading, text in zip(parts[::2], parts[1::2], strict=True)
    }
    return {heading: found for heading, found in rows.items() if found}


def _functions(file: str) -> set[str]:
    path: Path = ROOT / file
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_each_cell_of_the_threat_model_has_a_test_or_says_that_it_has_none() -> None:
    sections = _sections("docs/security.md")
    assert tuple(sections) == WHO
    for who, rows in sections.items():
        for store in ("directory", "Postgres", "S3"):
            assert any(where in (store, "every store") for where, _, _ in rows), f"{who}: nothing about {store}"
        for where, what, held in rows:
            assert _TEST.search(held) or "**Not defended**" in held, f"{who}, {where}: {what}"
            for file, name in _TEST.findall(held):
                assert name in _functions(file), f"{file}::{name}"


def test_what_cannot_happen_in_a_situation_has_a_test() -> None:
    table = (ROOT / "docs/security.md").read_text().partition("| situation |")[2].partition("\n\n")[0]
    rows = table.splitlines()[2:]
    assert len(rows) >= 9
    for row in rows:
        found = _TEST.findall(row)
        assert found, row
        for file, name in found:
            assert name in _functions(file), f"{file}::{name}"


def test_the_figures_of_attacks_are_no_higher_than_what_is_tried() -> None:
    text = (ROOT / "docs/guarantees.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| ((?:`tests/security/\w+\.py`(?:, )?)+) \| (\d+) \|$", text, re.MULTILINE)
    assert len(rows) >= 3
    for files, tried in rows:
        found = sum(name.startswith("test_") for file in re.findall(r"`([^`]+)`", files) for name in _functions(file))
        assert int(tried) <= found, files
