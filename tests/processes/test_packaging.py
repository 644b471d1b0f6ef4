"""What is installed elsewhere: the wheel by itself, and the suite's core on the system's newer Python."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support.postgres_fixtures import missing

ROOT = Path(__file__).parents[2]
CORE_TESTS = ("tests/unit/test_optuna_storage.py", "tests/unit/test_apply.py")


def _run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed, away from this suite's own settings."""
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "PYTHON", "HOPAAS_"))
    }
    ran = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, f"{command}\n{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}"
    return ran


def _pip(python: Path | str, *arguments: str | Path, cwd: Path) -> None:
    _run(python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()

    tops = {name.split("/")[0] for name in names}
    assert tops == {"hopaas_p2p", "dashboard_app", next(top for top in tops if top.endswith(".dist-info"))}
    both = [*(ROOT / "hopaas_p2p").rglob("*.py"), *(ROOT / "dashboard_app").rglob("*.py")]
    assert {str(path.relative_to(ROOT)) for path in both} <= set(names)
    assert {"dashboard_app/static/style.css", "dashboard_app/static/version_poll.js"} <= set(names)
    assert {
        "hopaas_p2p/py.typed",
        "hopaas_p2p/report/page.html",
        "hopaas_p2p/report/charts.css",
        "hopaas_p2p/report/style.css",
        "hopaas_p2p/report/tables.css",
        "hopaas_p2p/notebook/style.css",
    } <= set(names)


def test_the_wheel_alone_runs_the_demo_with_what_it_declares(wheel: Path, tmp_path: Path) -> None:
    """In a clean environment: an import that no dependency brings would end it."""
    environment = tmp_path / "venv"
    _run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    _pip(environment / "bin/python", "install", wheel, cwd=tmp_path)
    program = environment / "bin/hopaas-p2p"
    store = ("--store", tmp_path / "store")
    _run(program, "study", "create", "few", "--budget", "2", "--space", "x=float(0,1)", *store, cwd=tmp_path)
    _run(program, "worker", "--study", "few", *store, "--", "echo", '{"value": {x}}', cwd=tmp_path)

    bare = subprocess.run([program, "demo"], capture_output=True, text=True, timeout=60, check=False)
    assert (bare.returncode, bare.stdout) == (78, "")
    assert bare.stderr == "hopaas-p2p: the demo needs scikit-learn: pip install 'scikit-learn>=1.6'\n"
    _pip(environment / "bin/python", "install", f"{wheel}[demo]", cwd=tmp_path)

    done = _run(program, "demo", "--peers", "1", "--trials", "3", "--store", tmp_path / "store", cwd=tmp_path)
    listed = _run(program, "study", "show", "digits", "--store", tmp_path / "store", cwd=tmp_path)

    assert "Best of 3 trials" in done.stdout
    assert (tmp_path / "store/digits.html").read_text().startswith("<!DOCTYPE html>")
    assert "digits" in listed.stdout

    lacking = subprocess.run(
        [program, "dashboard", tmp_path / "store"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (lacking.returncode, lacking.stdout) == (78, "")
    assert "'streamlit[auth]>=" in lacking.stderr
    assert "hopaas-p2p[" not in lacking.stderr, "this is not on PyPI"


def _version(python: Path) -> tuple[int, int]:
    match = re.search(r"python3\.(\d+)$", python.name)
    return (3, int(match[1])) if match else (0, 0)


@functools.cache
def _newer_python() -> Path | None:
    """The newest system Python that is newer than the one which runs this suite."""
    found = [path for path in Path("/usr/bin").glob("python3.*") if _version(path) > sys.version_info[:2]]
    return max(found, key=_version, default=None)


def test_the_core_passes_on_the_systems_newer_python(wheel: Path, tmp_path: Path) -> None:
    python = _newer_python()
    if python is None:
        if _version(Path("/usr/bin/python3").resolve()) == sys.version_info[:2]:
            pytest.skip("this suite runs on the system's Python, and there is no newer one")
        missing("a system Python newer than the one of this suite")
    assert python is not None
    has_venv = subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True, check=False)
    if has_venv.returncode != 0:
        missing(f"the venv module of {python} (on Debian: apt-get install python3-venv)")
    environment = tmp_path / "venv"
    _run(python, "-m", "venv", environment, cwd=tmp_path)
    _pip(environment / "bin/python", "install", f"{wheel}[test]", cwd=tmp_path)

    ran = _run(
        environment / "bin/python",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *CORE_TESTS,
        cwd=ROOT,
        PYTHONDONTWRITEBYTECODE="1",
        OPENBLAS_NUM_THREADS="1",
    )

    assert re.search(r"\b[1-9]\d* passed", ran.stdout)


def test_no_file_names_a_package_index() -> None:
    """Where packages come from is the business of the machine that installs them."""
    telling = re.compile(r"(index-url|extra-index|find-links|pypi\.org/simple|files\.pythonhosted)", re.IGNORECASE)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = listed.stdout.split("\0") if listed.returncode == 0 else ["pyproject.toml", "Makefile", ".ci/run"]
    for name in names:
        path = ROOT / name
        if not name or path.suffix in (".png", ".svg") or path == Path(__file__) or not path.is_file():
            continue
        assert not telling.search(path.read_text(encoding="utf-8", errors="replace")), name


def test_every_extra_that_the_code_names_is_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for path in (ROOT / "hopaas_p2p").rglob("*.py"):
        for extra in re.findall(r"hopaas-p2p\[([\w,-]+)\]", path.read_text()):
            assert set(extra.split(",")) <= set(declared), f"{path.name} names the extra {extra!r}"


def test_the_module_is_the_program_and_the_citation_names_its_version() -> None:
    said = subprocess.run([sys.executable, "-m", "hopaas_p2p", "--version"], capture_output=True, text=True, check=True)
    version = said.stdout.split()[-1]
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
