"""Imports point one way, from what people use down to the rules."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "hopaas_p2p"

LAYERS = (
    {"errors", "interrupts", "__init__"},
    {"core", "settings"},
    {"stores", "tunnel"},
    {"peer", "frozen", "translate", "checkpoints", "notes", "access", "artifacts"},
    {"storage"},
    {"trial", "study", "trackers", "training", "notebook", "report"},
    {
        "ticket",
        "client",
        "worker",
        "export",
        "hopaas",
        "alerts",
    },
    {"demo"},
    {"cli", "testing"},
)
"""From the bottom up. A part may import its own layer and those below."""
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}


def _imports(node: ast.AST) -> Iterator[str]:
    """Modules imported anywhere in the file, but for those that only a type checker imports."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield child.module or ""
        else:
            yield from _imports(child)


def _all() -> Iterator[tuple[Path, str]]:
    """(file inside the package, module that it imports)."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for module in _imports(ast.parse(path.read_text())):
            yield path.relative_to(PACKAGE), module


def _part(file: Path) -> str:
    return file.parts[0].removesuffix(".py")


def test_every_part_of_the_package_has_its_layer() -> None:
    unknown = {_part(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")} - RANK.keys()
    assert not unknown, f"say in LAYERS where these belong: {unknown}"


def test_imports_point_down() -> None:
    wrong = []
    for file, module in _all():
        top, _, rest = module.partition(".")
        if top == PACKAGE.name:
            target = rest.split(".")[0] or "__init__"
            if RANK[target] > RANK[_part(file)]:
                wrong.append(f"{file} imports {module}")
    assert wrong == []


def test_the_core_is_pure() -> None:
    """No I/O, no clock, no threads, no randomness: it cannot do what it does not import."""
    allowed = {"__future__", "array", "collections", "dataclasses", "enum", "functools", "hashlib", "itertools", "math"}
    allowed |= {"msgspec", "re", "struct", "sys", "typing", "unicodedata", "zlib"}
    for file, module in _all():
        if _part(file) == "core":
            own = module.startswith(("hopaas_p2p.core", "hopaas_p2p.errors"))
            assert own or module.split(".")[0] in allowed, f"{file} imports {module}"


def test_optuna_stays_above_the_peer() -> None:
    for file, module in _all():
        if module.split(".")[0] == "optuna":
            assert RANK[_part(file)] >= RANK["frozen"], f"{file} imports {module}"
            assert _part(file) != "peer", f"{file} imports {module}"


def test_nothing_that_ships_for_use_imports_what_ships_for_tests() -> None:
    for file, module in _all():
        assert _part(file) == "testing" or not module.startswith("hopaas_p2p.testing"), f"{file} imports {module}"


def test_the_package_and_the_program_load_no_heavy_library() -> None:
    code = (
        "import sys, hopaas_p2p, hopaas_p2p.cli.main\n"
        "heavy = {'optuna', 'numpy', 'pandas', 'sklearn', 'sqlalchemy', 'psycopg2', 'rich', 'minio', 'streamlit'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_optunas_storages_are_known_to_the_adapter_and_to_export_only() -> None:
    knowing = {str(file) for file, module in _all() if module.startswith("optuna.storages")}
    assert knowing <= {"storage/__init__.py", "export/optunas.py"}
