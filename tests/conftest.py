"""Fixtures that several files use; each group lives in a file of its own."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator

import pytest

pytest_plugins = [
    "tests.postgres_fixtures",
    "tests.s3_fixtures",
    "tests.tunnel_fixtures",
    "tests.site_fixtures",
    "tests.mlflow_fixtures",
]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background job; what the tests start must hear it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def state_directory() -> Iterator[None]:
    """What tests leave in the spool is not this user's, and no other process reads it again and again."""
    with tempfile.TemporaryDirectory(prefix="state-") as directory, pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "XDG_STATE_HOME", directory)
        yield


@pytest.fixture(autouse=True)
def main_module() -> Iterator[None]:
    """Streamlit's AppTest puts its script in the place of `__main__`, which later child processes would run again."""
    before = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = before


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests have to tell at the end: under xdist, what they print is seen by nobody."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == "summary":
                terminalreporter.write_line(str(text))
