"""Imports point one way, from what people use down to the rules."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "hopaas_p2p"

LAYERS = (
    {"__init__", "errors", "runtime"},
    {"core", "spec"},
    {"net"},
    {"stores", "spool"},
    {"remote"},
    {"open"},
    {"peer", "translate", "access"},
    {"analysis"},
    {"storage", "search", "samplers", "pruners"},
    {"files"},
    {"study_like", "notes", "report", "notebook", "trackers"},
    {"study", "training"},
    {"ports", "hopaas", "alerts", "moving"},
    {"demo", "joining"},
    {"cli", "testing", "__main__"},
)
"""From the bottom up. A part may import its own layer and those below."""
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}


def test_a_verdict_of_the_log_is_looked_at() -> None:
    """Whoever waits for the log learns whether it took what was said; where that says nothing, `_ =` says so."""
    dropped = [
        f"{path.name}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        if isinstance(node.value.func, ast.Attribute) and node.value.func.attr in ("commit", "await_commit", "_commit")
    ]
    assert dropped == []


def _imports(tree: ast.AST) -> Iterator[str]:
    """Modules imported anywhere in the file: late, or for a type checker only, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


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
        target = rest.split(".")[0]
        facade = file == Path("__init__.py")  # its names lead anywhere, once they are used
        if top == PACKAGE.name and target in RANK and RANK[target] > RANK[_part(file)] and not facade:
            wrong.append(f"{file} imports {module}")
    assert wrong == []


def test_the_core_is_pure() -> None:
    """No I/O, no clock, no threads, no randomness: it cannot do what it does not import."""
    allowed = {
        "__future__",
        "array",
        "bisect",
        "collections",
        "dataclasses",
        "decimal",
        "enum",
        "functools",
        "hashlib",
        "itertools",
        "json",
        "math",
    }
    allowed |= {"msgspec", "re", "statistics", "struct", "sys", "typing", "unicodedata", "zlib"}
    for file, module in _all():
        if _part(file) == "core":
            own = module.startswith(("hopaas_p2p.core", "hopaas_p2p.errors"))
            assert own or module.split(".")[0] in allowed, f"{file} imports {module}"


def test_optuna_stays_above_the_peer() -> None:
    for file, module in _all():
        if module.split(".")[0] == "optuna":
            assert RANK[_part(file)] >= RANK["translate"], f"{file} imports {module}"
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


def test_commands_load_optuna_only_to_open_a_study() -> None:
    late = {"summary"}  # loaded by those that do
    names = sorted({path.stem for path in (PACKAGE / "cli").glob("*.py")} - late - {"__init__"})
    code = (
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(f'hopaas_p2p.cli.{name}')\n"
        "print(sorted({'optuna', 'numpy', 'pandas', 'sqlalchemy', 'psycopg2', 'rich'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_program_that_tunes_in_a_directory_loads_no_filelock(tmp_path: Path) -> None:
    """Where it is loaded, one of two threads that fork at once gets a RuntimeError, on Python 3.12 and newer."""
    code = (
        "import sys, hopaas_p2p\n"
        "study = hopaas_p2p.open_study(sys.argv[1], 's', space={'x': hopaas_p2p.Float(0, 1)}, budget=2)\n"
        "study.optimize(lambda trial: trial.params['x'])\n"
        "study.close()\n"
        "print('filelock' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_optunas_storages_are_known_to_the_adapter_and_to_moving_only() -> None:
    knowing = {str(file) for file, module in _all() if module.startswith("optuna.storages")}
    assert knowing <= {"storage/storage.py", "moving/optunas.py"}


def test_stores_know_nothing_of_what_is_in_a_commit() -> None:
    """They order and keep bytes; only the tools that examine or clean up a whole store replay a log."""
    tools = {"stores/checks.py", "stores/s3/gc.py"}
    allowed = {"intact", "nonce_of", "writer_of", "MAX_BYTES", "attach", "detach", "following", "shown", "PRIME"}
    for path in sorted((PACKAGE / "stores").rglob("*.py")):
        file = str(path.relative_to(PACKAGE))
        used = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "codec"
        }
        assert file in tools or used <= allowed, f"{file} uses {used - allowed} of core.codec"


def test_what_happens_at_a_fork_is_registered_in_one_module() -> None:
    registering = [
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if "os.register_at_fork(" in path.read_text()
    ]
    assert registering == ["runtime/process.py"]


def _circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The strongly connected components of more than one node: Tarjan, 1972."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            circle = set(stack[stack.index(node) :])
            del stack[stack.index(node) :]
            if len(circle) > 1:
                found.append(circle)

    for node in graph:
        if node not in order:
            visit(node)
    return found


def _graph() -> dict[str, set[str]]:
    """Module -> the modules that it imports, late or for a type checker, too."""
    names = {path: ".".join(path.with_suffix("").parts).removesuffix(".__init__") for path, _ in _all()}
    graph: dict[str, set[str]] = {name: set() for name in names.values()}
    for file, module in _all():
        name = module.removeprefix(f"{PACKAGE.name}.")
        target = name if name in graph else name.rpartition(".")[0]  # a module, or what is defined in one
        if target in graph and target != names[file]:
            graph[names[file]].add(target)
    return graph


def test_no_two_files_import_each_other() -> None:
    assert _circles(_graph()) == []


def test_no_two_parts_of_the_package_import_each_other() -> None:
    parts: dict[str, set[str]] = {}
    for name, others in _graph().items():
        part = name.partition(".")[0]
        parts.setdefault(part, set()).update({other.partition(".")[0] for other in others} - {part})
    assert _circles(parts) == []


DICTATED = {"Study", "Trial", "Float", "Int", "Categorical", "HopaasError", "TPESampler"}
DICTATED |= {"MedianPruner", "PercentilePruner", "SuccessiveHalvingPruner"}
"""Names that compatibility with HOPAAS' client or with Optuna dictates, and ours that people know."""


def test_no_class_name_is_defined_twice() -> None:
    defined: dict[str, list[str]] = {}
    for package in (PACKAGE, PACKAGE.parent / "dashboard_app"):
        for path in sorted(package.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    defined.setdefault(node.name, []).append(str(path.relative_to(PACKAGE.parent)))
    twice = {name: files for name, files in defined.items() if len(files) > 1}
    assert {name: twice[name] for name in twice.keys() - DICTATED} == {}


def test_no_part_uses_private_names_of_another() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        file, imported = path.relative_to(PACKAGE), dict[str, str]()
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE.name):
                imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        used = [f"{module}" for module in imported.values() if module.rpartition(".")[2].startswith("_")]
        used += [
            f"{imported[node.value.id]}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported
            if node.attr.startswith("_") and not node.attr.startswith("__")
        ]
        wrong += [f"{file} uses {name}" for name in used if name.split(".")[1] != _part(file)]
    assert wrong == []
