"""What cannot be taken back is asked twice, in a real browser; and what is done is done to what the person saw."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("streamlit")

import hopaas_p2p
from tests.support.dashboard_browser import Monitor, Visit, chromium
from tests.support.dashboard_studies import FAIL, Scribe
from tests.support.processes import until

if TYPE_CHECKING:
    from playwright.sync_api import Page

FAILED = 3  # trials
TAKE, END = "Requeue …", "Stop …"


@pytest.fixture
def study(tmp_path: Path) -> Iterator[hopaas_p2p.Study]:
    """One trial is over, two run, and nobody works on them: what moves is moved by the test."""
    scribe = Scribe()
    scribe.join("ann", "north")
    scribe.trial("ann", 1.0, lr=1e-3, units=16.0, opt=1.0)
    scribe.start("ann", lr=1e-2, units=32.0, opt=0.0)
    scribe.start("ann", lr=1e-4, units=64.0, opt=2.0)
    scribe.put_into(str(tmp_path / "store"))
    opened = hopaas_p2p.open_study(str(tmp_path / "store"), "study")
    yield opened
    opened.close()


@pytest.fixture
def visit(study: hopaas_p2p.Study, tmp_path: Path) -> Iterator[Visit]:
    """Steer, on that study."""
    with Monitor(str(tmp_path / "store"), "--allow-actions", cwd=tmp_path) as monitor, chromium() as browser:
        visit = Visit(browser, monitor)
        visit.go("/steer?study=study")
        yield visit
        visit.check()
        visit.close()


def choose(visit: Visit, number: int) -> Page:
    """Steer, with this trial chosen."""
    visit.choose("Trial", f"{number} |")
    visit.page.get_by_role("button", name=TAKE).and_(visit.page.locator(":enabled")).wait_for()
    return visit.page


def leave(page: Page) -> None:
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    page.get_by_role("dialog").wait_for(state="detached")


def test_a_trial_is_taken_away_after_a_second_word(visit: Visit, study: hopaas_p2p.Study) -> None:
    page = choose(visit, 1)
    page.get_by_role("button", name=TAKE).click()
    page.get_by_role("dialog").get_by_text("epoch 1").wait_for()
    leave(page)
    lsn = study.state.lsn

    page.get_by_role("button", name=TAKE).click()
    page.get_by_role("dialog").get_by_role("button", name="Requeue").click()

    page.locator(".hp-tile", has_text="waiting").get_by_text("1", exact=True).wait_for()
    assert study.state.lsn == lsn + 1  # the dialog that was left wrote nothing
    assert study.state.trials[1].state.name == "FAIL"
    assert list(study.state.waiting) == [3]
    assert study.state.trials[3].params == study.state.trials[1].params
    assert study.state.trials[2].state.name == "RUNNING"


def test_a_lease_that_ended_meanwhile_is_not_touched(visit: Visit, study: hopaas_p2p.Study) -> None:
    page = choose(visit, 1)
    page.get_by_role("button", name=TAKE).click()
    page.get_by_role("dialog").get_by_text("epoch 1").wait_for()

    study.requeue(1, epoch=1)  # somebody else was faster
    lsn = study.state.lsn
    page.get_by_role("dialog").get_by_role("button", name="Requeue").click()

    seen = page.get_by_role("dialog").get_by_text("that lease has ended")  # if the dashboard has read of it already
    refused = page.get_by_role("dialog").get_by_role("alert")
    seen.or_(refused).first.wait_for()
    assert study.state.lsn == lsn
    assert len(study.state.trials) == 4  # not queued once more


def test_a_list_stays_open_and_a_field_filled_while_the_study_moves_on(visit: Visit, study: hopaas_p2p.Study) -> None:
    page = visit.page
    page.get_by_label("How many times").fill("7")
    page.get_by_role("combobox", name="Trial", exact=True).click()
    page.get_by_role("option", name="2 |").wait_for()

    study.requeue(2, epoch=1)
    asked_of_all(page, study)
    assert page.get_by_role("option", name="2 |").is_visible()

    page.keyboard.press("Escape")
    page.locator(".hp-tile", has_text="waiting").get_by_text("1", exact=True).wait_for()

    def offered() -> list[str]:
        page.keyboard.press("Escape")
        asked_of_all(page, study)
        page.get_by_role("combobox", name="Trial", exact=True).click()
        page.get_by_role("option", name="1 |").wait_for()
        return page.get_by_role("option").all_inner_texts()

    until(lambda: len(offered()) == 1, 60, what="the trial that ended is still offered")
    assert page.get_by_label("How many times").input_value() == "7"


def asked_of_all(page: Page, study: hopaas_p2p.Study) -> None:
    """Wait until both parts of the page have asked twice: at the second question the first answer is acted on."""
    for _ in range(4):
        with page.expect_response(lambda one: "/version" in one.url and one.json()["version"] == str(study.state.lsn)):
            pass


def test_failures_are_queued_again_after_a_second_word(tmp_path: Path) -> None:
    scribe = Scribe()
    scribe.join("ann", "north")
    for at in range(FAILED):
        scribe.trial("ann", state=FAIL, reason=f"ValueError: {at}", lr=1e-3 * (1 + at), units=8.0, opt=0.0)
    scribe.put_into(str(tmp_path / "store"))
    study = hopaas_p2p.open_study(str(tmp_path / "store"), "study")
    with Monitor(str(tmp_path / "store"), "--allow-actions", cwd=tmp_path) as monitor, chromium() as browser:
        visit = Visit(browser, monitor)
        page = visit.go("/trials?study=study&view=Failures")
        visit.choose("Reason, site, node")
        page.get_by_role("button", name=f"Queue {FAILED} again").click()
        page.get_by_role("dialog").get_by_text("0, 1, 2").wait_for()
        assert len(study.state.trials) == FAILED

        page.get_by_role("dialog").get_by_role("button", name="Queue them").click()

        page.get_by_role("dialog").get_by_text(f"Queued {FAILED} as trials 3 to 5.").wait_for()
        assert list(study.state.waiting) == [3, 4, 5]
        visit.check()
        visit.close()
    study.close()


def test_the_two_parts_of_the_page_say_once_how_old_they_are(visit: Visit) -> None:
    page = visit.page
    page.get_by_text("data as of").first.wait_for()
    page.get_by_text("Queue a trial", exact=True).wait_for()

    assert page.locator(".hp-asof").count() == 2
    assert page.locator(".hp-asof span:visible").count() == 1


def test_the_study_is_stopped_after_a_second_word_and_its_trials_if_wanted(
    visit: Visit, study: hopaas_p2p.Study
) -> None:
    page = visit.page
    page.get_by_role("button", name=END).click()
    page.get_by_role("dialog").get_by_text("2 running trials will still be finished").wait_for()
    leave(page)
    assert study.state.status == "running"

    page.get_by_role("button", name=END).click()
    page.get_by_role("dialog").get_by_text("Also ask the running trials to end").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop it").click()

    page.locator(".hp-tile", has_text="of the study").get_by_text("stopped", exact=True).wait_for()
    until(lambda: study.state.trials[1].stop and study.state.trials[2].stop, 60, what="the trials were not asked")
    assert study.state.status == "stopped"
    assert study.state.trials[1].stop == "the study is stopped"
