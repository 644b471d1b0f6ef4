"""Fixtures that several files use; each group lives in a file of its own."""

from __future__ import annotations

import functools
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from hopaas_p2p.peer.peer import Peer
from hopaas_p2p.peer.session import LogClient
from hopaas_p2p.runtime import credentials

pytest_plugins = [
    "tests.support.postgres_fixtures",
    "tests.support.s3_fixtures",
    "tests.support.served",
    "tests.support.site_fixtures",
    "tests.support.mlflow_fixtures",
    "tests.support.machines",
    "tests.support.gluster",
    "tests.support.cephfs",
    "tests.support.rgw",
]

# As in an activated environment: commands in tests and examples say `python`, which Debian does not have outside one.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine
settings.load_profile("patient")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background job; what the tests start must hear it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def state_directory() -> Iterator[None]:
    """What tests leave in the spool is not this user's, and no other process reads it again and again."""
    with tempfile.TemporaryDirectory(prefix="state-") as directory, pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "XDG_STATE_HOME", directory)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_exchange_under_a_lock() -> Iterator[None]:
    """A thread that waits for the turn under a log's lock waits for one that needs the lock, for ever."""

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def checked(self: Peer, log: LogClient[Any], *more: Any, **options: Any) -> Any:
            lock: Any = log.lock
            assert not lock._is_owned(), f"{method.__name__} is called under the lock of the log"
            return method(self, log, *more, **options)

        return checked

    with pytest.MonkeyPatch.context() as patch:
        for name in ("refresh_for_reading", "await_commit", "pull", "catch_up"):
            patch.setattr(Peer, name, guarded(getattr(Peer, name)))
        yield


@pytest.fixture(autouse=True)
def named_hosts() -> Iterator[None]:
    """Which stores the user has named to this process: those of one test are not those of the next."""
    before = set(credentials._named)
    yield
    credentials._named.intersection_update(before)


@pytest.fixture(autouse=True)
def main_module() -> Iterator[None]:
    """Streamlit's AppTest puts its script in the place of `__main__`, which later child processes would run again."""
    before = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = before


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--short", action="store_true", help="only tests/unit, and the tests marked as a path")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --short, as in `make test`: every unit test, and one real path through each store and the worker."""
    if not config.getoption("--short"):
        return
    unit = config.rootpath / "tests" / "unit"
    kept = [item for item in items if item.path.is_relative_to(unit) or item.get_closest_marker("path")]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests have to tell at the end: under xdist, what they print is seen by nobody."""
    if terminalreporter.config.getoption("--short"):
        terminalreporter.write_line(
            "The short form. `make test-all` runs every test, also of monitor and batch systems."
        )
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == "summary":
                terminalreporter.write_line(str(text))
