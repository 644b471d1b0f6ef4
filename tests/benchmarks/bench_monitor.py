"""We compare the dashboard with optuna-dashboard in the same real browser, on the same store of 10,000 trials with 10
reports each.

"Usable" is the time from opening the address to the end of the last main-thread task over 50 ms. "Bytes" is what the
browser received with an empty cache. We watched refreshes for six seconds, or for a minute with optuna-dashboard, which
polls rarely when there are many trials.
"""

from __future__ import annotations

import base64
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, TrialCreate, TrialFinish
from hopaas_p2p.open import open_store
from hopaas_p2p.stores.base import Outgoing
from tests.support.dashboard_browser import WIDE, Monitor, chromium
from tests.support.dashboard_studies import COMPLETE, Scribe, large
from tests.support.ports import free_port
from tests.support.processes import environment, until

_QUIET: Final = 2.0  # seconds without a long task: the page is at rest
_PATIENCE: Final = 300.0
_UUID: Final = "0123456789abcdef"
_LONG_TASKS: Final = """
window.lastLong = 0; window.longest = 0;
new PerformanceObserver(list => { for (const one of list.getEntries()) {
    window.lastLong = Math.max(window.lastLong, one.startTime + one.duration);
    window.longest = Math.max(window.longest, one.duration);
} }).observe({type: 'longtask', buffered: true});
"""
_OPTUNAS: Final = """
import sys, warnings
warnings.simplefilter("ignore")
import hopaas_p2p, optuna_dashboard
optuna_dashboard.run_server(hopaas_p2p.open_storage(sys.argv[1], create=False), port=int(sys.argv[2]))
"""


class Opened(NamedTuple):
    """A page, opened."""

    usable: float
    received: int
    longest: float
    """Seconds of the longest task: for that long nothing answers."""


class Tab:
    """A tab of a browser of its own, that counts what it receives."""

    def __init__(self, browser: Any, server: Monitor | Optunas) -> None:
        self._context = browser.new_context(viewport=WIDE)
        server.admit(self._context)
        self.page = self._context.new_page()
        self.page.set_default_timeout(_PATIENCE * 1000)
        self.page.add_init_script(_LONG_TASKS)
        self.received = 0
        self._under_way: set[Any] = set()
        self.page.on("request", lambda request: self._under_way.add(request))
        self.page.on("requestfinished", lambda request: self._under_way.discard(request))
        self.page.on("requestfailed", lambda request: self._under_way.discard(request))
        session = self._context.new_cdp_session(self.page)
        session.send("Network.enable")
        session.on("Network.loadingFinished", lambda event: self._add(int(event["encodedDataLength"])))
        session.on("Network.webSocketFrameReceived", lambda event: self._add(_payload(event["response"])))

    def _add(self, count: int) -> None:
        self.received += count

    def open(self, address: str, drawn: str) -> Opened:
        """Open it, and wait until it can be used; `drawn` selects what is to be there."""
        self.page.goto(address, wait_until="commit")
        self.page.locator(drawn).first.wait_for()
        page = self.page.evaluate("performance.now()") / 1000
        self.rest()
        last, longest = self.page.evaluate("[window.lastLong, window.longest]")
        return Opened(max(page, last / 1000), self.received, longest / 1000)

    def rest(self) -> None:
        """Wait until the main thread has had nothing long to do for a while, and nothing is being fetched."""
        deadline, since = time.monotonic() + _PATIENCE, time.monotonic()
        while time.monotonic() < deadline:
            self.page.wait_for_timeout(100)
            if self._under_way:
                since = time.monotonic()
            quiet = self.page.evaluate("performance.now() - window.lastLong") > _QUIET * 1000
            if quiet and time.monotonic() - since > _QUIET:
                return

    def close(self) -> None:
        self._context.close()


def _payload(frame: dict[str, Any]) -> int:
    data = frame["payloadData"]
    return len(base64.b64decode(data)) if frame["opcode"] == 2 else len(data.encode())


class Optunas:
    """optuna-dashboard on the same store. Use as a context manager."""

    key = ""

    def __init__(self, url: str) -> None:
        self.port = free_port()
        self._command = [sys.executable, "-c", _OPTUNAS, url, str(self.port)]

    def __enter__(self) -> Optunas:
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(
            self._command, env=environment(PYTHONWARNINGS="ignore"), stdout=quiet, stderr=quiet
        )
        until(lambda: Monitor.get(self, "/api/studies")[0] == 200, 60)  # type: ignore[arg-type]
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def admit(self, context: Any) -> None:
        """Everybody may look."""


def _memory(server: Monitor | Optunas) -> int:
    return psutil.Process(server.process.pid).memory_info().rss


def _cpu(server: Monitor | Optunas) -> float:
    spent = psutil.Process(server.process.pid).cpu_times()
    return float(spent.user + spent.system)


class _Writer:
    """Adds trials to the study, one at a time."""

    def __init__(self, url: str, scribe: Scribe) -> None:
        self._store = open_store(url, create=False)
        self._log = self._store.log(_UUID)
        self._lsn, self._count, self._at = scribe.state.lsn, len(scribe.state.trials), int(scribe.clock * 1e6)
        self._seq = 0

    def one_more(self) -> int:
        """One complete trial; returns its number."""
        self._seq += 1
        reports = {step: 1.0 / step for step in range(1, 11)}
        create = TrialCreate(params={f"p{at}": 0.5 for at in range(4)} | {"opt": 0.0}, reports=reports, start=self._at)
        number = self._count
        commit = Commit("late", self._seq, "late", self._at, (create, TrialFinish(number, 1, COMPLETE, (0.5,))))
        self._log.exchange(Outgoing(f"late:{self._seq}", codec.encode(commit)), self._lsn)
        self._lsn += 1
        self._count += 1
        self._at += 1_000_000
        return number

    def close(self) -> None:
        self._store.close()


class Refresh(NamedTuple):
    """What it costs to show one more trial, and to show none."""

    received: int
    cpu: float
    idle: int
    """Bytes received in ten seconds in which nothing changed."""


def _refresh(tab: Tab, server: Monitor | Optunas, writer: _Writer, *, period: float) -> Refresh:
    """The median of three; what the server does in as long a time without news is taken off its CPU."""
    costs = []
    for _ in range(3 if period < 10 else 1):
        tab.rest()
        before, cpu = tab.received, _cpu(server)
        tab.page.wait_for_timeout(period * 1000)
        quiet, cpu_quiet = tab.received - before, _cpu(server) - cpu
        writer.one_more()
        before, cpu = tab.received, _cpu(server)
        tab.page.wait_for_timeout(period * 1000)
        costs.append(Refresh(tab.received - before, max(0.0, _cpu(server) - cpu - cpu_quiet), int(quiet * 10 / period)))
    return sorted(costs)[len(costs) // 2]


def rows(directory: Path) -> list[tuple[str, str, str, str, str]]:
    """Every figure, in some eight minutes, most of which optuna-dashboard takes."""
    url = str(directory / "store")
    scribe = large(10_000, name="many")
    scribe.put_into(url, uuid=_UUID)
    writer = _Writer(url, scribe)
    found: list[tuple[str, str, str, str, str]] = []
    with chromium() as browser:
        with Monitor(url, cwd=directory) as server:
            first = _first_visit(browser, server)
            ours = {name: _visit(browser, server, f"/{name}?study=many", "canvas") for name in ("live", "explore")}
            refresh = _watched(browser, server, writer, "/live?study=many", "canvas", period=6.0)
            memory = _memory(server)
        with Optunas(url) as server:
            theirs = _visit(browser, server, "/dashboard/studies/0", ".js-plotly-plot")
            optunas_refresh = _watched(browser, server, writer, "/dashboard/studies/0", ".js-plotly-plot", period=60.0)
            optunas_memory = _memory(server)
        for name, what in (("live", "Live"), ("explore", "Explore")):
            found.append(
                (
                    f"10,000 trials: {what} usable",
                    _s(ours[name].usable),
                    _s(theirs.usable),
                    _r(theirs.usable, ours[name].usable),
                    "4 s",
                )
            )
        found += [
            (
                "… first visit ever, received",
                _b(first.received),
                _b(theirs.received),
                _r(theirs.received, first.received),
                "5 MB",
            ),
            (
                "… Explore, received",
                _b(ours["explore"].received),
                _b(theirs.received),
                _r(theirs.received, ours["explore"].received),
                "5 MB",
            ),
            (
                "… longest task, during which no click is answered",
                _s(ours["live"].longest),
                _s(theirs.longest),
                _r(theirs.longest, ours["live"].longest),
                "",
            ),
            (
                "one more trial, received",
                _b(refresh.received),
                _b(optunas_refresh.received),
                _r(optunas_refresh.received, refresh.received),
                "150 kB",
            ),
            (
                "… CPU of the server",
                _s(refresh.cpu),
                _s(optunas_refresh.cpu),
                _r(optunas_refresh.cpu, refresh.cpu),
                "0.3 s",
            ),
            (
                "nothing new, received in 10 s",
                _b(refresh.idle),
                _b(optunas_refresh.idle),
                _r(optunas_refresh.idle, refresh.idle),
                "2 kB a look, 5 looks",
            ),
            ("memory of the server", _b(memory), _b(optunas_memory), _r(optunas_memory, memory), "400 MB"),
        ]
        found += _hundred_thousand(browser, directory)
    writer.close()
    return found


def _first_visit(browser: Any, server: Monitor) -> Opened:
    return _visit(browser, server, "/live?study=many", "canvas")


def _visit(browser: Any, server: Monitor | Optunas, path: str, drawn: str) -> Opened:
    tab = Tab(browser, server)
    try:
        return tab.open(server.address(path), drawn)
    finally:
        tab.close()


def _watched(
    browser: Any, server: Monitor | Optunas, writer: _Writer, path: str, drawn: str, *, period: float
) -> Refresh:
    tab = Tab(browser, server)
    try:
        tab.open(server.address(path), drawn)
        return _refresh(tab, server, writer, period=period)
    finally:
        tab.close()


def _hundred_thousand(browser: Any, directory: Path) -> list[tuple[str, str, str, str, str]]:
    url = str(directory / "large")
    large(100_000, reports=2, name="many").put_into(url, uuid=_UUID)
    with Monitor(url, cwd=directory) as server:
        _visit(browser, server, "/live?study=many", "canvas")
        pages = {name: _visit(browser, server, f"/{name}?study=many", "canvas") for name in ("live", "explore")}
        memory = _memory(server)
    live, explore = pages["live"], pages["explore"]
    return [
        ("100,000 trials: Live usable", _s(live.usable), "not tried", "", "10 s"),
        ("… Explore usable", _s(explore.usable), "not tried", "", "10 s"),
        ("… memory of the server", _b(memory), "not tried", "", ""),
    ]


def _s(seconds: float) -> str:
    if not seconds:
        return "-"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"


def _b(count: float) -> str:
    if not count:
        return "did not ask"
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _r(theirs: float, ours: float) -> str:
    return f"{theirs / ours:.1f}" if ours > 0 and theirs > 0 else "-"


def main() -> str:
    """A section of results.md."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        table = rows(Path(directory))
    lines = ["| what | hopaas-p2p dashboard | optuna-dashboard | ratio | asked |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in table]
    return f"{(__doc__ or '').strip()}\n\n" + "\n".join(lines)


if __name__ == "__main__":
    print(main())
