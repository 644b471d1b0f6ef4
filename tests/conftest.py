"""Fixtures that several files use; each group lives in a file of its own."""

from __future__ import annotations

import functools
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hopaas_p2p.peer.exchanges import Exchanges
from hopaas_p2p.peer.membership import Membership

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


@pytest.fixture(autouse=True, scope="session")
def no_exchange_under_a_lock() -> Iterator[None]:
    """Who holds a replica's lock and waits for a turn waits for whoever has the turn, and needs the lock, for ever."""

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def checked(self: Exchanges, membership: Membership[Any], *more: Any) -> Any:
            lock: Any = membership.replica.lock
            assert not lock._is_owned(), f"{method.__name__} is called under the lock of the replica"
            return method(self, membership, *more)

        return checked

    with pytest.MonkeyPatch.context() as patch:
        for name in ("refresh_for_reading", "settle", "pull", "catch_up"):
            patch.setattr(Exchanges, name, guarded(getattr(Exchanges, name)))
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
