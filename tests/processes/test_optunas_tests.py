"""Optuna's own tests of studies, trials and storages, from its source distribution, run on what is ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, MultiObjectiveSamplerTestCase, RelativeSamplerTestCase

from hopaas_p2p.samplers import CmaEsSampler, TPESampler
from tests.support.needs import missing

PLUGIN: Final = Path(__file__).parents[1] / "support" / "optunas_plugin.py"
OF_A_DATABASE: Final = {"test_get_trials_included_trial_ids", "test_get_trials_trial_id_greater_than"}
"""They ask for Optuna's own RDBStorage."""
ON_PURPOSE: Final = {
    "test_get_trials": "trials are copied without deepcopy, whose calls it counts",
    "test_log_completed_trial": "progress is logged in our words",
    "test_nested_optimization": "optimize may be nested",
    "test_optimize_infinite_budget_progbar": "a progress bar needs no number of trials",
    "test_optimize_with_progbar_parallel_timeout": "several threads may have a progress bar",
    "test_tell_automatically_fail": "a value that is not a number is refused, and the trial continues",
    "test_tell_multi_objective_automatically_fail": "the same",
    "test_trials_dataframe": "it has columns of ours, too",
    "test_trials_dataframe_with_failure": "the same",
}
"""Optuna's tests that do not hold for our Study, and why: ADR 51."""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked tests of the installed version of Optuna."""
    name = f"optuna-{optuna.__version__}"
    source = Path(sys.prefix) / f"{name}.tar.gz"
    if not source.exists():
        missing(f"Optuna's tests (pip download --no-deps --no-binary optuna --dest .venv optuna=={optuna.__version__})")
    into = tmp_path_factory.mktemp("optuna")
    with tarfile.open(source) as packed:
        packed.extractall(into, [one for one in packed if one.name.startswith(f"{name}/tests/")], filter="data")
    return into / name


@pytest.mark.parametrize(("ours", "differ"), [("storage", OF_A_DATABASE), ("study", ON_PURPOSE.keys())])
def test_they_pass_except_for_those_that_are_named(theirs: Path, tmp_path: Path, ours: str, differ: set[str]) -> None:
    tests = ["tests/study_tests", "tests/trial_tests"]
    tests += ["tests/storages_tests/test_storages.py", "tests/test_callbacks.py"] if ours == "storage" else []
    options = ["-q", "-p", PLUGIN.stem, "-p", "no:cacheprovider", "-p", "no:randomly"]
    shutil.copy(PLUGIN, tmp_path)  # from here it would bring another package named tests
    report = tmp_path / "report.xml"
    found = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", str(theirs), f"--junit-xml={report}", *tests],
        cwd=theirs,
        env=os.environ | {"OURS": ours, "STORES": str(tmp_path), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    cases = ElementTree.parse(report).iter("testcase")
    failed = [case for case in cases if {"failure", "error"} & {one.tag for one in case}]
    assert {case.attrib["name"].partition("[")[0] for case in failed} == set(differ), found.stdout[-20_000:]


class TestTheDefaultSampler(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: TPESampler(n_startup_trials=0, repeats="avoid", model="process")


class TestCmaEsSampler(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return CmaEsSampler
