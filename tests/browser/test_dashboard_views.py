"""The dashboard's views, against small studies whose answers are known."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("streamlit")

from dashboard_app.views import studies, trial
from dashboard_app.views.table import passing
from hopaas_p2p.analysis import charts, echarts, failures, palette
from hopaas_p2p.analysis.chart import Chart, downsample_line, downsample_points, wants_log
from hopaas_p2p.analysis.importance import importance
from hopaas_p2p.analysis.savings import Savings, missing, savings
from hopaas_p2p.analysis.table import RUNNING, TrialTable
from hopaas_p2p.core.records import Float, TrialCreate, TrialRelease, TrialSet
from tests.support.dashboard_studies import COMPLETE, FAIL, PRUNED, Scribe, large

ROOT = Path(__file__).parents[2]


def rows(chart: Chart | None, name: str) -> list[tuple[float, ...]]:
    """What the series of this name draws."""
    assert chart is not None
    at = next(at for at, series in enumerate(echarts.option(chart)["series"]) if series["name"] == name)
    frame = echarts.option(chart)["dataset"][at]["source"]
    return [tuple(row) for row in frame.itertuples(index=False, name=None)]


@pytest.fixture
def scribe() -> Scribe:
    return Scribe()


def five() -> Scribe:
    """Values 3, 5, 2, 2, 4 at two sites, each trial an hour long."""
    scribe = Scribe()
    scribe.join("a", "north")
    scribe.join("b", "south")
    for peer, value in zip("ababa", (3.0, 5.0, 2.0, 2.0, 4.0), strict=True):
        scribe.trial(peer, value, seconds=3600.0, lr=value / 100, units=10 * value, opt=value % 3)
    return scribe


# --- columns ---


def test_columns_hold_what_the_log_says() -> None:
    scribe = five()
    running = scribe.start("a", lr=0.001)
    scribe.report("a", running, 0.9, 0.8)
    found = TrialTable.of(scribe.state)
    assert found.number.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.values[:5, 0].tolist() == [3, 5, 2, 2, 4]
    assert np.isnan(found.values[5, 0])
    assert [found.sites[at] for at in found.site] == ["north", "south", "north", "south", "north", "north"]
    assert found.seconds()[:5].tolist() == [3600.0] * 5
    assert (found.steps[5], found.last_step[5], found.last[5]) == (2, 2, 0.8)
    assert np.isnan(found.params["units"][5])
    assert found.best() == 2  # the earliest of equals


def test_columns_made_from_earlier_ones_are_the_same_as_new_ones() -> None:
    scribe = large(1324)
    late = scribe.start("peer-0", p0=0.5)
    before = TrialTable.of(scribe.state)
    scribe.report("peer-0", late, 0.4)
    scribe.finish("peer-0", late, 0.25)
    scribe.trial("peer-1", 0.125, p0=0.25)
    quick, new = TrialTable.of(scribe.state, before), TrialTable.of(scribe.state)
    assert before.state[late] == RUNNING  # what others still look at does not change
    for name in ("number", "state", "start", "end", "steps", "last", "owner", "site", "values"):
        np.testing.assert_array_equal(getattr(quick, name), getattr(new, name))
    np.testing.assert_array_equal(quick.params["p0"], new.params["p0"])


def test_an_empty_study_has_empty_columns() -> None:
    found = TrialTable.of(Scribe().state)
    assert len(found) == 0
    assert found.best() is None
    assert charts.history(found) is None
    assert charts.slice_(found, "lr") is None
    assert charts.parallel(found, "lr") is None
    assert savings(Scribe().state, found) == Savings()
    assert charts.curves(Scribe().state, found) is None
    assert failures.failures(Scribe().state) == {}
    assert studies.best_so_far([("empty", found)]) is None


# --- history ---


def test_the_best_so_far_falls_where_a_better_trial_came() -> None:
    chart = charts.history(TrialTable.of(five().state))
    assert rows(chart, "best so far") == [(0, 3), (2, 2), (4, 2)]
    assert rows(chart, "complete") == [(0, 3, 0), (1, 5, 1), (2, 2, 2), (3, 2, 3), (4, 4, 4)]
    assert chart is not None
    assert "the best is trial 2 with 2" in chart.alt


@pytest.mark.parametrize(("complete", "pruned"), [(5, 95), (95, 5), (50, 50)])
def test_nothing_is_left_out_of_a_history_that_has_room(scribe: Scribe, complete: int, pruned: int) -> None:
    for value in range(complete):
        scribe.trial("a", float(value))
    for value in range(pruned):
        scribe.trial("a", state=PRUNED, reports=(float(value),))

    all_of_it = charts.history(TrialTable.of(scribe.state), most=100)
    thinned = charts.history(TrialTable.of(scribe.state), most=80)

    assert all_of_it is not None
    assert thinned is not None
    assert all_of_it.caption == ""
    assert "of 100 drawn" in thinned.caption


def test_a_study_that_maximizes_rises() -> None:
    scribe = Scribe("maximize")
    for value in (1.0, 3.0, 2.0, 4.0):
        scribe.trial("a", value)
    assert rows(charts.history(TrialTable.of(scribe.state)), "best so far") == [(0, 1), (1, 3), (3, 4), (3, 4)]


def test_a_history_marks_where_an_earlier_study_stops_counting() -> None:
    chart = charts.history(TrialTable.of(five().state), ignored=[("digits", 3)])
    assert chart is not None
    assert [(one.data["trial"].tolist(), one.data["said"]) for one in chart.series if one.symbol == "triangle"] == [
        ([3], ["From here on, digits is ignored"])
    ]
    assert chart.alt.endswith("digits is ignored from trial 3 on.")


def test_compute_hours_count_every_trial_when_it_ends(scribe: Scribe) -> None:
    first = scribe.start("a")
    scribe.clock += 1800
    scribe.trial("b", seconds=1800.0, state=FAIL, reason="boom")
    scribe.finish("a", first, 1.0)  # one hour; b failed after half an hour, at the same moment
    scribe.trial("b", seconds=3600.0, state=PRUNED, reports=(1.0,))
    hours = charts.positions(TrialTable.of(scribe.state), "compute")
    assert sorted(hours.tolist()) == [1.0, 1.5, 2.5]
    assert hours[2] == 2.5


def test_history_by_time_is_in_milliseconds() -> None:
    scribe = five()
    first, *others = rows(charts.history(TrialTable.of(scribe.state), along="time"), "complete")
    assert first[0] == (1_700_000_000 + 3600) * 1000
    assert len(others) == 4


def test_far_off_values_do_not_flatten_the_rest(scribe: Scribe) -> None:
    for at in range(50):
        scribe.trial("a", 1e9 if at == 20 else 1 + at % 7)
    chart = charts.history(TrialTable.of(scribe.state))
    assert chart is not None
    assert echarts.option(chart)["yAxis"]["max"] < 10
    assert "1 outlying value lies outside the chart" in chart.caption


def test_history_of_what_is_shown_only() -> None:
    found = TrialTable.of(five().state)
    chart = charts.history(found, shown=passing(found, sites=("south",)))
    assert rows(chart, "best so far") == [(1, 5), (3, 2), (3, 2)]


# --- the filter ---


def test_a_filter_lets_through_what_it_says() -> None:
    found = TrialTable.of(five().state)
    assert passing(found).all()
    assert found.number[passing(found, first=1, last=3)].tolist() == [1, 2, 3]
    assert found.number[passing(found, sites=("north",), ranges=(("units", 25.0, 45.0),))].tolist() == [0, 4]
    assert not passing(found, states=("fail",)).any()


# --- parameters ---


def test_the_parameter_that_decides_is_the_important_one() -> None:
    scribe = Scribe(space={"x": Float(0, 1), "noise": Float(0, 1)})
    for at in range(60):
        x = (at * 0.618) % 1
        scribe.trial("a", x * x, x=x, noise=(at * 0.755) % 1)
    found = importance(scribe.state, TrialTable.of(scribe.state))
    chart = charts.importance(found)
    assert chart is not None
    bars = echarts.option(chart)["dataset"][0]["source"]
    assert bars["parameter"].tolist()[-1] == "x"
    assert bars["share"].tolist()[-1] > 80
    assert "60 complete trials" in found.note


def test_importance_says_why_there_is_none() -> None:
    state = five().state
    found = importance(state, TrialTable.of(state))
    chart = charts.importance(found)
    assert chart is None
    assert "found 5" in found.note


def test_a_slice_has_a_point_a_trial_that_has_the_parameter() -> None:
    scribe = five()
    scribe.trial("a", 1.5, units=200.0)  # conditional: no lr
    chart = charts.slice_(TrialTable.of(scribe.state), "lr")
    assert [row[2] for row in rows(chart, "complete")] == [0, 1, 2, 3, 4]
    assert rows(chart, "best")[0][2] == 2
    assert chart is not None
    assert echarts.option(chart)["xAxis"]["type"] == "log"


def test_a_slice_over_choices_names_them() -> None:
    chart = charts.slice_(TrialTable.of(five().state), "opt")
    assert {row[0] for row in rows(chart, "complete")} == {"adam", "sgd", "lion"}


def test_parallel_lines_end_with_the_best_on_top() -> None:
    chart = charts.parallel(TrialTable.of(five().state), "lr", "opt")
    assert chart is not None
    assert chart.series[0].data["trial"][-1] == 2
    assert echarts.option(chart)["series"][0]["data"][-1] == [0.02, 2.0, 2.0]
    assert echarts.option(chart)["parallelAxis"][1]["data"] == ["adam", "sgd", "lion"]


def test_parallel_leaves_a_gap_for_a_parameter_that_a_trial_does_not_have(scribe: Scribe) -> None:
    scribe.trial("a", 1.0, lr=0.01)
    found = charts.parallel(TrialTable.of(scribe.state), "lr", "units")
    assert found is not None
    assert echarts.option(found)["series"][0]["data"] == [[0.01, "-", 1.0]]


# --- fronts ---


def test_the_front_holds_what_nothing_beats() -> None:
    scribe = Scribe("minimize", "maximize")
    for pair in ((1.0, 1.0), (2.0, 2.0), (2.0, 1.5), (3.0, 2.0), (0.5, 0.5), (1.0, 1.0), (0.7, 0.4)):
        scribe.trial("a", *pair)
    found = TrialTable.of(scribe.state)
    assert found.front().tolist() == [0, 1, 4, 5]
    chart = charts.pareto(found)
    assert [row[2] for row in rows(chart, "on the front")] == [4, 0, 5, 1]
    assert charts.pareto(TrialTable.of(five().state)) is None


# --- pruning ---


def test_compute_saved_is_what_the_pruned_trials_were_short_of(scribe: Scribe) -> None:
    for _ in range(4):
        scribe.trial("a", 1.0, seconds=3600.0, reports=(1.0,) * 10)
    scribe.trial("a", seconds=720.0, state=PRUNED, reports=(2.0, 2.0))  # six minutes a step, eight steps short
    scribe.trial("a", seconds=3600.0, state=PRUNED, reports=(2.0,) * 12)  # longer than a whole one: saved nothing
    found = savings(scribe.state, TrialTable.of(scribe.state))
    assert found.hours == pytest.approx(0.8)
    assert (found.steps, found.made) == (8, 54)
    assert found.share == pytest.approx(8 / 62)
    assert (found.pruned, found.length) == (2, 10)


def test_the_mean_of_what_is_missing_is_over_all_lengths() -> None:
    lacking = missing(np.array([5.0, 10.0, 15.0]), np.array([0.0, 5.0, 12.0, 20.0]))
    assert lacking.tolist() == pytest.approx([10.0, 5.0, 1.0, 0.0])


def test_curves_of_one_kind_are_one_series_with_gaps(scribe: Scribe) -> None:
    scribe.trial("a", 1.0, reports=(3.0, 2.0, 1.0))
    scribe.trial("a", state=PRUNED, reports=(5.0, 4.0))
    scribe.trial("a", state=PRUNED, reports=(6.0, 5.0))
    chart = charts.curves(scribe.state, TrialTable.of(scribe.state))
    found = rows(chart, "pruned")
    assert [row[2] for row in found] == [1, 1, 1, 2, 2]
    assert [row[1] for row in found][:2] == [5.0, 4.0]
    assert np.isnan(found[2][1])
    assert rows(chart, "best") == [(1, 3, 0), (2, 2, 0), (3, 1, 0)]


# --- failures ---


def test_lost_leases_stand_apart_from_errors_of_the_objective(scribe: Scribe) -> None:
    scribe.join("a", "north", "n1")
    scribe.join("b", "south", "s1")
    scribe.trial("a", state=FAIL, reason="ValueError: loss 17 is nan at 0x7fff\nTraceback …")
    scribe.trial("a", state=FAIL, reason="ValueError: loss 4 is nan at 0x1234")
    lost = scribe.start("b")
    scribe.clock += 300
    scribe.reclaim("a", lost)
    given_back = scribe.start("a")
    scribe.say("a", TrialRelease(given_back, scribe.state.trials[given_back].epoch, reason="interrupted: SystemExit"))
    found = failures.failures(scribe.state)
    key, members = next(iter(found.items()))
    assert key == ("error", "ValueError: loss N is nan at 0x…", "north", "n1")
    assert [(one.number, one.final) for one in members] == [(1, True), (0, True)]
    first, *others = failures.cells(found, str)
    assert first == ["error in the objective", "ValueError: loss N is nan at 0x…", "north", "n1", "2", "2", "1"]
    assert failures.cells({key: members[:1]}, str)[0][1] == "ValueError: loss 4 is nan at 0x1234", "all of them say so"
    assert sorted((row[0], row[2], row[5]) for row in others) == [  # a retry made up for them
        ("lease lost", "south", "0"),
        ("returned", "north", "0"),
    ]


# --- comparison ---


def test_studies_are_compared_from_a_common_start() -> None:
    slow, quick = Scribe(name="slow"), Scribe(name="quick")
    for value in (10.0, 5.0, 1.0, 0.0):
        slow.trial("a", value, seconds=3600.0)
    quick.clock += 1e6
    quick.trial("a", 0.5, seconds=1800.0)
    pair = [("slow", TrialTable.of(slow.state)), ("quick", TrialTable.of(quick.state))]
    states = {"slow": slow.state, "quick": quick.state}
    table = {name: studies.summary(states[name], found) for name, found in pair}
    assert table["slow"]["best"] == 0
    assert table["slow"]["compute-hours"] == 4
    chart = studies.best_so_far(pair, along="time")
    assert rows(chart, "slow") == [(1, 10), (2, 5), (3, 1), (4, 0), (4, 0)]
    assert rows(chart, "quick") == [(0.5, 0.5), (0.5, 0.5)]


# --- downsampling ---


def test_a_sample_of_points_keeps_the_envelope() -> None:
    x = np.arange(20_000.0)
    y = np.sin(x / 500) + np.where(x == 12_345, 10.0, 0.0) - np.where(x == 777, 10.0, 0.0)
    kept = downsample_points(x, y, most=5000)
    assert len(kept) <= 5000
    assert {12_345, 777} <= set(kept.tolist())
    assert np.all(np.diff(kept) > 0)


def test_a_sample_of_a_line_keeps_its_ends_and_its_peaks() -> None:
    y = np.zeros(10_000)
    y[[4321, 8765]] = (5.0, -5.0)
    kept = downsample_line(y, most=100).tolist()
    assert len(kept) <= 100
    assert {0, 9999, 4321, 8765} <= set(kept)


@pytest.fixture(scope="module")
def ten_thousand() -> TrialTable:
    return TrialTable.of(large(10_000).state)


def test_no_chart_of_ten_thousand_trials_draws_more_than_a_browser_bears(ten_thousand: TrialTable) -> None:
    drawings = [
        charts.history(ten_thousand),
        charts.history(ten_thousand, along="compute"),
        charts.slice_(ten_thousand, "p0"),
    ]
    for chart in drawings:
        assert chart is not None
        drawn = sum(len(one["source"]) for one in echarts.option(chart)["dataset"])
        bytes_ = sum(int(one["source"].memory_usage(index=False).sum()) for one in echarts.option(chart)["dataset"])
        assert drawn <= 5500, chart.title
        assert bytes_ < 150_000, chart.title
    history_chart = drawings[0]
    assert history_chart is not None
    assert "drawn" in history_chart.caption
    parallel = charts.parallel(ten_thousand, "p0", "p1", "opt")
    assert parallel is not None
    assert parallel.series[0].drawn == 600


def test_states_have_one_palette_in_the_notebook() -> None:
    text = (ROOT / "hopaas_p2p/notebook/style.css").read_text()
    colours = dict(re.findall(r"--(complete|pruned|failed|running|lost|best): (#[0-9a-f]{6})", text))
    assert colours == {name.lower(): getattr(palette, name.upper()) for name in colours}
    assert colours


def test_states_have_the_same_palette_in_the_monitor() -> None:
    text = (ROOT / "dashboard_app/static/style.css").read_text()
    found = dict(re.findall(r"\.hp-(complete|pruned|running|best) \{ --hp-of: (#[0-9a-f]{6})", text))
    assert found == {name: getattr(palette, name.upper()) for name in ("complete", "pruned", "running", "best")}


def test_an_axis_is_logarithmic_where_values_span_decades() -> None:
    assert wants_log(np.geomspace(1e-6, 10, 40))
    assert not wants_log(np.array([*np.linspace(1, 2, 39), 1e9]))  # one far-off value
    assert not wants_log(np.linspace(-1, 1000, 40))


# --- metrics beside the reports ---


def test_each_metric_of_a_trial_has_a_curve_and_the_best_trials_beside_it() -> None:
    scribe = five()
    scribe.say("b", TrialCreate(COMPLETE, values=(1.0,), metrics={"loss": {1: 9.0, 2: 8.0}}))
    scribe.start("a", lr=0.001)
    running = scribe.state.trials[6]
    scribe.say(
        "a",
        TrialSet(6, running.epoch, metrics={"loss": {2: 0.5, 1: 1.0}, "auc": {1: 0.5}, "odd": {1: math.nan, 2: 1.0}}),
    )
    best = TrialTable.of(scribe.state).best()
    drawn = charts.metrics(scribe.state.trials[6], None if best is None else scribe.state.trials[best])
    assert [chart.title for chart in drawn] == ["loss"]
    assert rows(drawn[0], "trial 6") == [(1.0, 1.0), (2.0, 0.5)]
    assert rows(drawn[0], "best, trial 5") == [(1.0, 9.0), (2.0, 8.0)]
    assert drawn[0].alt == "loss by step. best, trial 5: 8 at step 2; trial 6: 0.5 at step 2."


# --- side by side ---


def test_trials_side_by_side_say_in_which_parameters_they_differ(scribe: Scribe) -> None:
    scribe.join("a", "north")
    scribe.trial("a", 1.0, reports=(3.0, 1.0), lr=0.01, units=64.0, opt=0.0)
    scribe.trial("a", 2.0, reports=(4.0, 2.0), lr=0.01, units=64.0, opt=1.0)
    scribe.trial("a", state=FAIL, reason="ValueError: no", lr=0.010000001, units=64.0)
    found = trial.side_by_side(scribe.state, TrialTable.of(scribe.state), [1, 0, 2])
    facts = {name: cells for _, name, cells in found}
    assert facts["value"] == ["2", "1", ""]
    assert facts["rank"] == ["2 of 2", "1 of 2", ""]
    assert facts["last report"] == ["2 at step 2", "1 at step 2", ""]
    assert facts["reason"] == ["", "", "ValueError: no"]
    assert facts["opt"] == ["sgd", "adam", ""]
    assert facts["lr"] == ["0.01", "0.01", "0.010000001"]  # numbers that look alike are written out
    assert [name for kind, name, cells in found if kind == "parameter" and len(set(cells)) > 1] == ["lr", "opt"]
    chart = trial.curves(scribe.state, [1, 0, 2])
    assert rows(chart, "trial 1") == [(1.0, 4.0), (2.0, 2.0)]
    assert chart is not None
    assert chart.alt == "Learning curves by step. trial 1: 2 at step 2; trial 0: 1 at step 2."


def test_trials_to_compare_are_read_from_what_was_typed() -> None:
    assert trial.numbers_in("3, #1 and 3; 99, -2", 10) == [3, 1, 2]
    assert trial.numbers_in("0 1 2 3 4 5 6", 10) == [0, 1, 2, 3, 4]
    assert trial.numbers_in("no number, 9999999999999", 10) == []
