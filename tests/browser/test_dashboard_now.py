"""What the pages of people and trials say, against hand-made studies whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("streamlit")  # the extra that brings pandas and numpy along

from dashboard_app.views import live, metrics, studies, table, trial
from hopaas_p2p.analysis import charts, echarts, tiles
from hopaas_p2p.analysis.chart import Chart, finite
from hopaas_p2p.analysis.facts import state_word
from hopaas_p2p.analysis.peers import peer_rows
from hopaas_p2p.analysis.spending import spending
from hopaas_p2p.analysis.table import TrialTable, place
from hopaas_p2p.analysis.timeline import timeline
from hopaas_p2p.core.records import Float, Policy, StudyControl, TrialRelease, TrialStop
from hopaas_p2p.core.state import State
from hopaas_p2p.peer.liveness import SignOfLife, owners_of
from tests.support.dashboard_studies import FAIL, PRUNED, Scribe, with_rungs

BEGAN = 1_700_000_000.0


def everybody(state: State, *, alive: bool = True) -> dict[str, SignOfLife]:
    return {owner: SignOfLife(alive, None) for owner in owners_of(state)}


def two_sites() -> Scribe:
    """Six trials of two peers: four complete, one pruned, one that fails; then one that runs at each."""
    scribe = Scribe(policy=Policy(budget=10))
    scribe.join("ann", "north", "n1")
    scribe.join("bob", "south", "s1")
    scribe.trial("ann", 4.0, lr=1e-3, units=16.0, opt=0.0, reports=(9.0, 8.0, 4.0))
    scribe.trial("bob", 2.0, lr=1e-2, units=32.0, opt=1.0, reports=(9.0, 7.0, 2.0))
    scribe.trial("ann", state=PRUNED, lr=1e-4, units=64.0, opt=0.0, reports=(9.5,))
    scribe.trial("ann", state=FAIL, lr=1e-1, units=8.0, opt=2.0, reason="ValueError: <b>nan</b>\nTraceback")
    scribe.trial("bob", 3.0, lr=1e-2, units=16.0, opt=1.0, reports=(5.0, 4.0, 3.0))
    scribe.trial("bob", 6.0, lr=1e-5, units=128.0, opt=1.0)
    scribe.start("ann", lr=1e-3, units=16.0, opt=0.0)
    scribe.start("bob", lr=1e-3, units=24.0, opt=2.0)
    scribe.report("bob", 7, 5.0, 4.5)
    return scribe


@pytest.fixture
def scribe() -> Scribe:
    return two_sites()


@pytest.fixture
def state(scribe: Scribe) -> State:
    return scribe.state


# --- studies -----------------------------------------------------------------------------------------------------


def test_a_card_says_best_counts_peers_by_site_and_who_began(state: State) -> None:
    card = studies.card(state, TrialTable.of(state), everybody(state))

    assert (card["word"], *card["best"]) == ("running", "2", "lowest, trial 1")
    assert card["counts"] == {"running": 2, "complete": 4, "pruned": 1, "fail": 1}
    assert (card["used"], card["budget"]) == (7, 10)
    assert card["sites"] == {"north": 1, "south": 1}
    assert card["spark"] == [4.0, 2.0, 2.0, 2.0]
    assert card["begun_by"] == "ann"
    assert studies.first_line("\n# Digits\nmore") == "Digits"


def test_a_study_whose_peers_are_all_silent_is_idle(state: State) -> None:
    card = studies.card(state, TrialTable.of(state), everybody(state, alive=False))

    assert (card["word"], card["sites"]) == ("idle", {})


def test_the_words_for_a_study() -> None:
    new = Scribe(policy=Policy(budget=1))
    assert state_word(new.state, working=False) == "open"
    new.join("a", "north")
    new.trial("a", 1.0)
    assert state_word(new.state, working=False) == "done"
    paused = two_sites()
    paused.say("boss", StudyControl(status="paused"))
    assert state_word(paused.state, working=True) == "paused"
    assert state_word(two_sites().state, working=None) == "unknown"


def test_a_card_of_two_goals_counts_the_front() -> None:
    scribe = Scribe("minimize", "maximize")
    scribe.join("a", "north")
    for pair in ((1.0, 1.0), (2.0, 3.0), (2.0, 2.0)):
        scribe.trial("a", *pair)

    card = studies.card(scribe.state, TrialTable.of(scribe.state), {})

    assert (*card["best"], card["spark"]) == ("2 on the front", "of 2 objectives", [])


# --- live --------------------------------------------------------------------------------------------------------


def test_the_pace_counts_the_last_hour_and_all_that_ran(scribe: Scribe) -> None:
    now = scribe.clock + 20.0

    pace = live.pace(scribe.state, TrialTable.of(scribe.state), now)

    assert pace["recent"] == 5
    assert pace["per_hour"] == pytest.approx(5 * 3600 / 80)  # five that count, in the 80 s since the first began
    assert tiles.failed(scribe.state) == ("failed", "1", "of 6 finished trials")
    assert pace["hours"] == spending(scribe.state).total["seconds"] / 3600  # as every page says it
    assert pace["left"] == 5
    assert pace["eta"] == pytest.approx(5 * 80 / 5)


def test_hours_of_a_lease_that_was_given_back_count_once() -> None:
    scribe = Scribe(policy=Policy(attempts=2))
    scribe.join("a", "north")
    number = scribe.start("a")
    scribe.clock += 100
    scribe.reclaim("b", number)

    pace = live.pace(scribe.state, TrialTable.of(scribe.state), scribe.clock)

    assert pace["hours"] == pytest.approx(100 / 3600)


def test_without_a_trial_there_is_no_pace() -> None:
    state = Scribe().state

    pace = live.pace(state, TrialTable.of(state), BEGAN)
    assert pace == dict.fromkeys(("recent", "per_hour", "hours"), 0) | {"left": None, "eta": None}


def test_trials_that_pause_at_rungs_do_not_use_up_the_budget_of_configurations() -> None:
    scribe = with_rungs()
    scribe.say("a", StudyControl(budget=10))
    assert len(scribe.state.trials) > 10 > scribe.state.used()

    pace = live.pace(scribe.state, TrialTable.of(scribe.state), scribe.clock)

    assert (pace["left"], pace["eta"]) == (None, None)


def test_running_trials_say_where_and_how_far(scribe: Scribe) -> None:
    trials = live.running(scribe.state)

    assert [(one.number, *place(scribe.state, one.owner)) for one in trials] == [(6, "north", "n1"), (7, "south", "s1")]
    assert live.steps_of_a_trial(TrialTable.of(scribe.state)) == 3
    assert [finite(one.reports) for one in trials] == [[], [(1, 5.0), (2, 4.5)]]


def test_events_come_newest_first_and_tell_the_best(scribe: Scribe) -> None:
    found = live.events(scribe.state, TrialTable.of(scribe.state))

    by_number = {number: (kind, text) for _, number, kind, text in found}
    assert [number for _, number, _, _ in found][:2] == [7, 6]
    assert by_number[1] == ("best", "complete: 2, the best so far")
    assert by_number[4] == ("complete", "complete: 3")
    assert by_number[2] == ("pruned", "pruned after step 1")
    assert by_number[3] == ("fail", "failed: ValueError: <b>nan</b>")
    assert by_number[6] == ("started", "started at north on n1")


def test_a_lost_lease_is_told_once_with_its_retry() -> None:
    scribe = Scribe()
    scribe.join("a", "north", "n1")
    number = scribe.start("a")
    scribe.clock += 60
    scribe.reclaim("b", number)

    ((_, _, kind, text),) = live.events(scribe.state, TrialTable.of(scribe.state))

    assert kind == "lost"
    assert text == "taken from north (n1): its owner fell silent; retried as trial 1"


def test_a_returned_trial_is_told_as_returned_whatever_the_reason() -> None:
    scribe = Scribe()
    scribe.join("a", "north", "n1")
    number = scribe.start("a")
    scribe.say("a", TrialRelease(number, 1, reason="pre-empted: SIGTERM"))

    ((_, _, kind, text),) = live.events(scribe.state, TrialTable.of(scribe.state))

    assert (kind, text) == ("returned", "returned by north (n1): pre-empted: SIGTERM")
    found = metrics.exposition([("store", "s", scribe.state, TrialTable.of(scribe.state), 0.0)])
    assert 'hopaas_leases_lost_total{store="store",study="s"} 0' in found
    assert 'hopaas_leases_returned_total{store="store",study="s"} 1' in found


# --- peers -------------------------------------------------------------------------------------------------------


def test_peers_say_where_they_are_and_what_they_ran(scribe: Scribe) -> None:
    now = scribe.clock + 10.0

    signs = {"ann": SignOfLife(True, 0.0), "bob": SignOfLife(True, 0.0)}
    found = {one["peer"]: one for one in peer_rows(scribe.state, now, signs)}

    ann = found["ann"]
    assert [ann[what] for what in ("site", "host", "running", "ended", "lost")] == ["north", "n1", [6], 3, 0]


def lines(chart: Chart | None) -> dict[str, list[str]]:
    """What is said of each line of a timeline, by kind."""
    assert chart is not None
    return {one.name: one.data["said"][::3] for one in chart.series}


def test_the_timeline_has_a_bar_for_every_stretch_and_draws_on_what_runs(scribe: Scribe) -> None:
    found = lines(timeline(scribe.state, scribe.clock + 30.0))

    assert {kind: len(some) for kind, some in found.items()} == {"complete": 4, "running": 2, "pruned": 1, "failed": 1}
    assert all(said.endswith("running, 30 s") for said in found["running"])


def test_a_long_timeline_keeps_the_newest_bars_and_says_so() -> None:
    scribe = Scribe()
    for at in range(6):
        scribe.join(f"p{at}", "north", f"n{at}")
        scribe.trial(f"p{at}", 1.0)
        scribe.trial(f"p{at}", 1.0)

    chart = timeline(scribe.state, scribe.clock, most=5, rows=4)

    assert [said.split(":")[0] for said in lines(chart)["complete"]] == [f"trial {at}" for at in range(7, 12)]
    assert chart is not None
    assert "2 more peers not drawn. 3 earlier periods not drawn." in chart.caption


def test_a_long_timeline_is_drawn_at_the_milliseconds_that_it_says() -> None:
    scribe = Scribe()
    scribe.join("a", "north")
    for _ in range(120):
        scribe.trial("a", 1.0)

    chart = timeline(scribe.state, scribe.clock)
    assert chart is not None
    (drawn,) = (one["source"]["at"] for one in echarts.option(chart)["dataset"])
    assert len(drawn) > 300
    assert drawn.to_list() == pytest.approx(list(chart.series[0].data["at"]), rel=0, abs=1, nan_ok=True)


# --- the table ---------------------------------------------------------------------------------------------------


def test_the_table_shows_parameters_as_the_objective_saw_them(state: State) -> None:
    every = TrialTable.of(state)

    found = table.table(state, every, every.number < 4, tags={1: ["keep", "paper"]}, lines={2: "Why"})

    assert found["trial"].tolist() == [3, 2, 1, 0]
    assert found["state"].tolist() == ["fail", "pruned", "complete", "complete"]
    assert found["opt"].tolist() == ["lion", "adam", "sgd", "adam"]
    assert found["units"].tolist() == [8, 64, 32, 16]
    assert found["node"].tolist() == ["n1", "n1", "s1", "n1"]
    assert found["reason"].tolist()[0] == "ValueError: <b>nan</b>"
    assert found["tags"].tolist() == ["", "", "keep, paper", ""]
    assert found["seconds"].tolist() == [10.0] * 4


def test_a_parameter_called_like_a_column_keeps_its_own() -> None:
    scribe = Scribe(space={"state": Float(0.0, 1.0), "value": Float(0.0, 1.0)})
    scribe.join("a", "north")
    number = scribe.start("a", state=0.5, value=0.25)
    scribe.finish("a", number, 7.0)
    every = TrialTable.of(scribe.state)

    found = table.table(scribe.state, every, np.ones(len(every), dtype=bool), tags={}, lines={})

    assert found["state"].tolist() == ["complete"]
    assert (found["param state"].tolist(), found["param value"].tolist()) == ([0.5], [0.25])


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("", list(range(8))), ("NAN", [3]), ("south", [1, 4, 5, 7]), ("#4", [4]), ("pap", [1]), ("zzz", [])],
)
def test_finding_looks_into_reasons_places_tags_and_numbers(state: State, text: str, numbers: list[int]) -> None:
    every = TrialTable.of(state)

    found = table.matching(state, every, text, {1: ["paper"]})

    assert every.number[found].tolist() == numbers


# --- one trial ---------------------------------------------------------------------------------------------------


def test_the_rank_is_among_the_complete(state: State) -> None:
    assert trial.rank(TrialTable.of(state), 4) == (2, 4)
    assert trial.rank(TrialTable.of(state), 2) is None


def test_the_curve_stands_against_the_best_and_the_median(state: State) -> None:
    chart = charts.curve(state, TrialTable.of(state), 7)

    assert chart is not None
    assert chart.alt.endswith("trial 7: 4.5 at step 2.")
    assert [series["name"] for series in echarts.option(chart)["series"]] == [
        "median of complete trials",
        "best, trial 1",
        "trial 7",
    ]
    assert charts.curve(state, TrialTable.of(state), 6) is None


def test_every_owner_is_told_and_why_it_lost_the_trial() -> None:
    scribe = Scribe(policy=Policy(attempts=2))
    scribe.join("a", "north", "n1")
    scribe.join("b", "south", "s1")
    lost = scribe.start("a", lr=1e-3)
    scribe.clock += 60
    scribe.reclaim("b", lost)
    again = scribe.start("b", lr=1e-3)
    scribe.clock += 5

    (owner,) = trial.leases(scribe.state.trials[lost])

    assert (owner.owner, owner.epoch, owner.why) == ("a", 1, "its owner fell silent")
    assert owner.start is not None and owner.end - owner.start == 60_000_000
    assert again == 2


def test_a_trial_that_was_asked_to_stop_says_so(scribe: Scribe) -> None:
    scribe.say("boss", TrialStop(7, scribe.state.trials[7].epoch, "too slow"))

    rows = live.running(scribe.state)

    assert [one.stop for one in rows] == [None, "too slow"]


# --- notes -------------------------------------------------------------------------------------------------------


def test_the_first_line_of_a_trials_note_is_found() -> None:
    study_id = 3
    system = {
        "dashboard:note_str:0": "of the study",
        f"dashboard:{(study_id << 32) + 2}:note_str:0": "\n## Why\nbecause",
        f"dashboard:{(study_id << 32) + 4}:note_str:0": "\n",
    }

    assert table.note_lines(system, study_id) == {2: "Why"}


def test_a_curve_with_gaps_and_infinities_is_drawn_from_what_is_finite() -> None:
    scribe = Scribe()
    scribe.join("a", "north")
    number = scribe.start("a")
    scribe.report("a", number, 1.0, math.nan, math.inf, 2.0)

    (trial_that_runs,) = live.running(scribe.state)

    assert [value for _, value in finite(trial_that_runs.reports)] == [1.0, 2.0]
