"""The dashboard in a real browser, on studies that run: nothing breaks, nothing leaks, everybody can read it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("streamlit")

import hopaas_p2p
from dashboard_app.app import PAGES
from hopaas_p2p import notes
from hopaas_p2p.core.records import Categorical, Float
from tests.support.dashboard_browser import NARROW, Monitor, Visit, axe, chromium
from tests.support.dashboard_studies import FAIL, Scribe
from tests.support.processes import environment, until

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PEER = """
import sys, time
from pathlib import Path
import optuna, hopaas_p2p
optuna.logging.set_verbosity(optuna.logging.ERROR)
url, stop = sys.argv[1], Path(sys.argv[2])
study = hopaas_p2p.open_study(url, "live", sampler=optuna.samplers.RandomSampler())
def objective(trial):
    for step in range(200):
        trial.report(trial.params["x"] + 1 / (1 + step), step)
        if trial.should_prune():
            raise optuna.TrialPruned
        if stop.exists():
            break
        time.sleep(0.2)
        if step == 20 and trial.number % 4 != 0:
            break
    if trial.params["x"] > 0.8:
        raise ValueError(f"diverged at {trial.params['x']:.3f}")
    return trial.params["x"]
while not stop.exists():
    study.optimize(objective, n_trials=1, catch=ValueError)
study.close()
"""


def address(path: str) -> str:
    """The address of a page about the study `live`; the first page is at the root."""
    return "/?study=live" if path == PAGES[0].path else f"/{path}?study=live"


class Work:
    """Two peers at two sites at work on the study `live` until the end."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self._stop = directory / "stop"
        self._errors = directory / "peers.err"
        self.study = hopaas_p2p.open_study(
            url,
            "live",
            space={"x": Float(0.0, 1.0), "opt": Categorical(("adam", "sgd"))},
            policy=hopaas_p2p.StudyPolicy(lease_ttl=30.0),
        )
        self._peers = [self._start(site) for site in ("north", "south")]

    def _start(self, site: str) -> subprocess.Popen[bytes]:
        tokens = {key: value for key, value in os.environ.items() if key.startswith("HOPAAS_TOKEN")}
        with self._errors.open("ab") as errors:
            command = [sys.executable, "-c", PEER, self.url, str(self._stop)]
            return subprocess.Popen(command, stderr=errors, env=environment(HOPAAS_SITE=site, **tokens))

    def end(self) -> None:
        self._stop.touch()
        for peer in self._peers:
            try:
                peer.wait(60)
            except subprocess.TimeoutExpired:
                peer.kill()
                peer.wait()
        self.study.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def visits(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Opens tabs; each is checked at the end, and closed."""
    opened: list[Visit] = []

    def visit(monitor: Monitor, *, dark: bool = False) -> Visit:
        opened.append(Visit(browser, monitor, dark=dark))
        return opened[-1]

    yield visit
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Work, Monitor]]:
    """Work on a study in a directory, and the dashboard on it, with optuna-dashboard beside."""
    root = tmp_path_factory.mktemp("live")
    work = Work(str(root / "store"), root)
    try:
        until(lambda: sum(work.study.state.counts[1:4]) >= 3, 60, what="no trial ended")
        with Monitor(work.url, "--allow-actions", "--optuna", cwd=root) as monitor:
            yield work, monitor
    finally:
        work.end()


@pytest.mark.path
def test_every_page_opens_and_nobody_is_shut_out(live: tuple[Work, Monitor], visits: Callable[..., Visit]) -> None:
    source = axe()
    visit = visits(live[1])
    visit.go("/live?study=live")
    found = []
    for entry in PAGES:
        visit.turn_to(entry.title)
        found += [f"{entry.path}: {one}" for one in visit.barriers(source)]
        visit.check()
    assert found == []


def test_the_dark_theme_can_be_read_too(live: tuple[Work, Monitor], visits: Callable[..., Visit]) -> None:
    source = axe()
    visit = visits(live[1], dark=True)
    found = []
    paths = {path: address(path) for path in ("live", "explore", "steer", "trials", "studies")}
    for path, asked in {
        **paths,
        "parallel": f"{address('explore')}&chart=Parallel",
        "compare": "/?show=Compare",
    }.items():
        visit.go(asked)
        found += [f"{path}: {one}" for one in visit.barriers(source)]
        visit.check()
    assert found == []


def test_every_page_fits_a_telephone(live: tuple[Work, Monitor], visits: Callable[..., Visit]) -> None:
    visit = visits(live[1])
    visit.page.set_viewport_size(NARROW)  # type: ignore[arg-type]
    for entry in PAGES:
        visit.go(address(entry.path))
        until(
            lambda: visit.overflow() <= 1, 20, what=lambda path=entry.path: f"{path} is {visit.overflow()} px too wide"
        )
        visit.check()


def test_the_menu_names_the_study_and_back_goes_back(live: tuple[Work, Monitor], visits: Callable[..., Visit]) -> None:
    visit = visits(live[1])
    page = visit.go("/live?study=live")
    link = page.get_by_test_id("stSidebar").get_by_role("link", name="Trials", exact=True)
    assert link.get_attribute("href") == "trials?study=live"  # also in another tab

    visit.turn_to("Trials")
    page.go_back()

    page.locator("h1.hp-title").get_by_text("Live", exact=True).wait_for()
    assert page.url == live[1].address("/live?study=live")
    visit.check()


def test_what_is_chosen_on_a_chart_is_a_part_of_the_address(
    live: tuple[Work, Monitor], visits: Callable[..., Visit]
) -> None:
    visit = visits(live[1])
    page = visit.go("/explore?study=live&chart=Parallel")
    page.get_by_test_id("stMultiSelect").last.get_by_role("button", name="Remove").first.click()
    page.wait_for_url("**axes=**")
    visit.check()


def test_what_runs_changes_by_itself(live: tuple[Work, Monitor], visits: Callable[..., Visit]) -> None:
    visit = visits(live[1])
    page = visit.go("/live?study=live")
    table = page.locator("table.hp-table").first
    table.wait_for()
    before = table.inner_text()
    opened = page.evaluate("performance.timeOrigin")
    until(lambda: table.inner_text() != before, 60, what="the running table stayed as it was")
    assert page.evaluate("performance.timeOrigin") == opened  # the page was not loaded anew
    visit.check()


def test_a_request_to_stop_reaches_the_peer(live: tuple[Work, Monitor], visits: Callable[..., Visit]) -> None:
    work, monitor = live
    state = work.study.state

    def fresh() -> list[int]:
        """Trials of the kind that takes long, with most of it before them."""
        return [
            number for number in work.study.state.running if number % 4 == 0 and len(state.trials[number].reports) < 60
        ]

    visit = visits(monitor)
    page = visit.go("/steer?study=live")

    def chosen() -> list[int]:
        """A fresh trial that the page offers, and that is chosen now; the offer is as old as the last redraw."""
        page.keyboard.press("Escape")
        visit.followed()
        page.get_by_role("combobox", name="Trial", exact=True).click()
        with contextlib.suppress(visit.late):  # none runs just now
            page.get_by_role("option").first.wait_for(timeout=2_000)
            for number in fresh():
                option = page.get_by_role("option", name=f"{number} |")
                if option.count():
                    option.click(timeout=2_000)
                    return [number]
        return []

    (number,) = until(chosen, 120, what="no fresh trial is offered")
    epoch = state.trials[number].epoch
    page.get_by_role("button", name="Stop it").click()
    page.get_by_role("dialog").get_by_label("Reason").fill("it smells")
    page.get_by_role("dialog").get_by_role("button", name="Ask it to end").click()
    until(lambda: work.study.state.trials[number].state.name == "PRUNED", 60, what="it was not stopped")
    assert work.study.state.trials[number].epoch == epoch
    visit.check()


def test_a_note_written_here_is_shown_by_optuna_dashboard(
    live: tuple[Work, Monitor], visits: Callable[..., Visit]
) -> None:
    work, monitor = live
    visit = visits(monitor)
    page = visit.go("/notes?study=live")
    page.get_by_text("Write", exact=True).first.click()
    page.get_by_label("Markdown, also shown by optuna-dashboard").first.fill("**Warm-up** helps, see trial 3.")
    page.get_by_role("button", name="Save").first.click()
    until(lambda: "Warm-up" in notes.note_of(work.study), 60, what="the note did not arrive")
    page.locator("strong", has_text="Warm-up").wait_for()
    visit.check()

    def shown() -> bool:
        status, text = monitor.get(f"/api/studies/{work.study.study_id}", port=monitor.port + 1)
        return status == 200 and "Warm-up" in json.loads(text)["note"]["body"]

    until(shown, 60, what="optuna-dashboard does not show the note")


def test_metrics_and_health_are_told(live: tuple[Work, Monitor]) -> None:
    _, monitor = live
    status, text = monitor.get("/metrics")
    assert status == 200
    assert 'study="live",state="complete"' in text
    assert 'hopaas_running_peers{store="' in text
    assert monitor.get("/healthz")[0] == 200


def test_it_works_on_postgres_too(postgres_url: str, tmp_path: Path, visits: Callable[..., Visit]) -> None:
    work = Work(postgres_url, tmp_path)
    try:
        with Monitor(postgres_url, "--allow-actions", cwd=tmp_path) as monitor:
            visit = visits(monitor)
            page = visit.go("/live?study=live")
            until(lambda: work.study.state.running, 60)
            page.locator("table.hp-table").first.wait_for()
            for entry in PAGES:
                visit.turn_to(entry.title)
                visit.check()
            visit.turn_to("Steer")
            page.get_by_role("button", name="Pause").click()
            until(lambda: work.study.state.status == "paused", 60, what="not paused")
            page.locator(".hp-tile", has_text="of the study").get_by_text("paused", exact=True).wait_for()
            page.get_by_role("button", name="Resume").click()
            until(lambda: work.study.state.status == "running", 60, what="not resumed")
            visit.check()
    finally:
        work.end()


EVIL = (
    "<img src=x onerror=window.hacked=1>",
    "<script>window.hacked=1</script>",
    "[click](javascript:window.hacked=1)",
    '"><svg onload=window.hacked=1>',
    ":material/home: $x$ **b** `c`",
)


def hostile() -> Scribe:
    """Every text that a peer can write is an attempt."""
    html, script, link, svg, markdown = EVIL
    space = {html: Float(0.0, 1.0), link: Categorical((script, svg)), markdown: Float(0.0, 1.0)}
    scribe = Scribe(name=f"study {html}", space=space)
    scribe.join("a", site=svg, host=html)
    scribe.join("b", site=link, host=script)
    for at in range(14):
        spot = at * 0.618 % 1
        params = {html: spot, link: float(at % 2), markdown: 1 - spot}
        failed = at % 5 == 4
        scribe.trial(
            "ab"[at % 2], *(() if failed else (spot,)), reports=(2.0, 1.0), **params,
            **({"state": FAIL, "reason": f"{script} {html} {markdown}"} if failed else {}),
        )  # fmt: skip
    scribe.start("a", **{html: 0.5, link: 1.0, markdown: 0.5})
    return scribe


def test_what_peers_write_stays_text(tmp_path: Path, visits: Callable[..., Visit]) -> None:
    url = str(tmp_path / "store")
    scribe = hostile()
    scribe.put_into(url)
    study = hopaas_p2p.open_study(url, scribe.name)
    notes.save_note(study, "\n\n".join(EVIL))
    notes.save_note(study, "\n\n".join(EVIL), 0)
    notes.change_tags(study, add=[one[:60] for one in EVIL])
    study.set_user_attr(EVIL[0], EVIL[1])
    study.close()
    with Monitor(url, "--allow-actions", cwd=tmp_path) as monitor:
        visit = visits(monitor)
        page = visit.go("/")
        assert EVIL[0] in page.locator("body").inner_text()
        page.locator("a.hp-card").first.click()
        visit.settled()
        for entry in PAGES:
            visit.turn_to(entry.title)
            page.mouse.move(700, 520)  # over a chart, if there is one: its tooltip shows names
            page.mouse.move(705, 525)
            assert page.evaluate("window.hacked") is None, entry.path
            visit.check()
        for chart in ("Slice", "Parallel", "Importance"):
            visit.turn_to("Explore")
            page.get_by_role("radio", name=chart).or_(page.get_by_role("button", name=chart)).first.click()
            visit.settled()
            page.mouse.move(640, 560)
            assert page.evaluate("window.hacked") is None, chart
            visit.check()
        assert page.locator("a[href^='javascript:']").count() == 0
