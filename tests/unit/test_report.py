"""The HTML report: complete, self-contained, safe against hostile content, and quick on large studies."""

from __future__ import annotations

import contextlib
import datetime
import html.parser
import math
import random
import re
import time
from pathlib import Path

import numpy as np
import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.analysis import charts, facts, svg
from hopaas_p2p.analysis.chart import MOST, ChartAxis
from hopaas_p2p.analysis.failures import failures
from hopaas_p2p.analysis.html import table
from hopaas_p2p.analysis.importance import importance
from hopaas_p2p.analysis.peers import peer_rows
from hopaas_p2p.analysis.savings import savings
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.analysis.timeline import stretches, timeline
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.codec import Garbage
from hopaas_p2p.core.records import (
    Budget,
    Categorical,
    Commit,
    Float,
    Int,
    PeerJoin,
    Policy,
    StudyDefine,
    TrialCreate,
    TrialFinish,
    TrialReclaim,
    TrialRelease,
    TrialSet,
    TrialState,
    Used,
)
from hopaas_p2p.core.state import State
from hopaas_p2p.report import write_report
from hopaas_p2p.report.page import render, slices

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
SPACE = {"lr": Float(1e-5, 1e-1, log=True), "units": Int(8, 256), "opt": Categorical(("adam", "sgd"))}
HOSTILE = '<script>alert("1")</script>\'&\x1b[31m\u202e</title></svg>'
_VOID = {"meta", "br", "rect", "path", "circle", "hr"}


class _Writer:
    """Builds a State record by record, with a clock that goes on by a second each time."""

    def __init__(
        self,
        *directions: str,
        space: dict[str, Float | Int | Categorical] | None = None,
        policy: Policy = Policy(),  # noqa: B008  # frozen
    ) -> None:
        self.state = State()
        self.now = 1_700_000_000_000_000
        self._seq: dict[str, int] = {}
        define = StudyDefine("study", directions or ("minimize",), policy, SPACE if space is None else space)
        self.say("a", define)

    def say(self, peer: str, *records: object) -> None:
        self.now += 1_000_000
        self._seq[peer] = self._seq.get(peer, 0) + 1
        commit = Commit(peer, self._seq[peer], peer, self.now, tuple(records))  # type: ignore[arg-type]
        apply(self.state, self.state.lsn + 1, commit)

    def trial(self, peer: str, values: tuple[float, ...] | None, *, reports: int = 0, lr: float = 1e-3) -> int:
        number = len(self.state.trials)
        self.say(peer, TrialCreate())
        curve = {step: 1.0 / step for step in range(1, reports + 1)}
        params = {"lr": lr, "units": 8.0 + number % 200, "opt": float(number % 2)}
        self.say(peer, TrialSet(number, 1, params=params, dists=dict(SPACE), reports=curve))
        state = TrialState.PRUNED if values is None else TrialState.COMPLETE
        self.say(peer, TrialFinish(number, 1, state, values))
        return number


def _study(trials: int) -> State:
    writer = _Writer()
    rng = random.Random(1)
    for peer in ("a", "b"):
        writer.say(peer, PeerJoin({"site": "here", "host": "node", "pid": "7" if peer == "a" else "8"}))
    for number in range(trials):
        lr = 10 ** rng.uniform(-5, -1)
        value = None if number % 3 == 2 else (abs(lr - 1e-3) + rng.random() * 1e-4,)
        writer.trial("ab"[number % 2], value, reports=4 if value is None else 10, lr=lr)
    return writer.state


def _render(state: State) -> str:
    return render(state, name="study", store="file:///x", now=NOW)


class _Parser(html.parser.HTMLParser):
    """Collects tags and checks that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag


def _parsed(page: str) -> _Parser:
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_the_report_shows_every_section_of_a_usual_study() -> None:
    page = _render(_study(60))

    _parsed(page)
    for title in ("Timeline by peer", "History", "Learning curves", "Which parameters matter", "Best trials"):
        assert f"<h2>{title}</h2>" in page
    assert "here · 7" in page
    assert "PED-ANOVA over 40 complete trials" in page


def test_the_report_needs_no_network_and_no_script() -> None:
    page = _render(_study(30))

    parser = _parsed(page)
    assert not parser.tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert not parser.attributes & {"src", "href"}
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_every_chart_has_a_name_for_people_who_do_not_see_it() -> None:
    page = _render(_study(30))

    charts = [
        one for one in re.findall(r"<svg [^>]*>.{0,7}", page) if 'aria-hidden="true"' not in one
    ]  # legends' marks
    assert len(charts) >= 5
    for chart in charts:
        assert 'role="img" aria-label="' in chart
        assert chart.endswith("<title>")


def test_colour_is_not_the_only_sign_of_a_pruned_trial() -> None:
    page = _render(_study(30))
    legend = page[page.index("<figcaption") :]
    pruned, complete = [
        re.search(rf'd="([^"]*)"/></svg>{word}', legend)[1]
        for word in ("pruned", "complete")  # type: ignore[index]
    ]
    assert ("a" in complete, "a" in pruned) == (True, False), "a circle has arcs"


def test_hostile_names_are_shown_and_never_run() -> None:
    writer = _Writer(space={HOSTILE: Float(0, 1), "c": Categorical((HOSTILE, "b"))})
    writer.say("evil", PeerJoin({"site": HOSTILE, "host": HOSTILE, "pid": HOSTILE}))
    for number in range(12):
        writer.say("evil", TrialCreate())
        dists = {HOSTILE: Float(0, 1), "c": Categorical((HOSTILE, "b"))}
        writer.say("evil", TrialSet(number, 1, params={HOSTILE: number / 20, "c": number % 2}, dists=dists))
        writer.say("evil", TrialFinish(number, 1, TrialState.COMPLETE, (float(number),)))
    writer.say("evil", TrialCreate())
    writer.say("b", TrialReclaim(12, 1, reason=HOSTILE))
    writer.say("evil", TrialCreate())
    writer.say("evil", TrialFinish(14, 1, TrialState.FAIL, reason=HOSTILE))

    page = render(writer.state, name=HOSTILE, store=HOSTILE, now=NOW)

    parser = _parsed(page)
    assert "script" not in parser.tags
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;" in page


def test_hostile_numbers_do_not_break_the_report() -> None:
    writer = _Writer("minimize", space={})
    for number, value in enumerate((float("inf"), -float("inf"), 1e308, -1e308, 5e-324, 0.0)):
        writer.say("a", TrialCreate(start=-(1 << 61)))
        dists = {"c": Categorical(("x",)), "w": Float(-1e308, 1e308)}
        params = {"c": 99.0 if number % 2 else float("nan"), "w": 1e308}
        writer.say("a", TrialSet(number, 1, params=params, dists=dists, reports={-(1 << 60): value, 1 << 60: 1.0}))
        writer.say("a", TrialFinish(number, 1, TrialState.COMPLETE, (value,)))

    page = _render(writer.state)

    _parsed(page)
    assert "nan" not in re.sub(r"<(title|td)[^>]*>[^<]*", "", page)


def test_a_report_says_how_many_kinds_of_failures_it_leaves_out() -> None:
    writer = _Writer("minimize")
    for number in range(21):
        writer.say("a", TrialCreate())
        writer.say("a", TrialFinish(number, 1, TrialState.FAIL, reason="x" * (1 + number)))

    assert "<h2>Failures, 20 of 21 groups</h2>" in _render(writer.state)


def test_the_page_names_the_sampler_in_force() -> None:
    with contextlib.closing(
        hopaas_p2p.open_study("memory://", "s", space=SPACE, sampler=optuna.samplers.RandomSampler())
    ) as study:
        study.search_with(sampler=optuna.samplers.QMCSampler(scramble=True))
        page = _render(study.state)
        assert "QMCSampler(" in page
        assert "RandomSampler" not in page


def test_only_finite_medians_and_marks_are_drawn() -> None:
    writer = _Writer()
    for _ in range(4):
        number = writer.trial("a", (1.0,), reports=1)
        last = writer.trial("a", None)
        writer.say("a", TrialCreate(state=TrialState.COMPLETE, values=(1.0,), reports={1: math.inf, 2: 1.0}))
    state, table = writer.state, TrialTable.of(writer.state)
    chart = charts.curve(state, table, number)
    assert chart is not None
    drawn = [float(one) for layer in chart.series for one in layer.data["value"]]
    drawn += [
        float(one)
        for layer in charts.history(table, ignored=[("old", last)]).series
        for one in layer.data.get("value", ())
    ]
    assert np.isfinite(drawn).all()


def test_trials_that_reported_nothing_but_nan_have_no_curves() -> None:
    writer = _Writer("minimize")
    for number in range(2):
        writer.say("a", TrialCreate())
        writer.say("a", TrialSet(number, 1, reports={1: float("nan"), 2: float("nan")}))

        assert "<h2>Learning curves</h2>" not in _render(writer.state)


@pytest.mark.parametrize(("names", "size"), [(["lr"], "500 290"), (["lr", "units"], "250 170")])
def test_a_single_slice_is_as_large_as_any_chart(names: list[str], size: str) -> None:
    found = slices(TrialTable.of(_study(12)), names)

    assert found.count(f'viewBox="0 0 {size}"') == len(names)


@pytest.mark.parametrize("trials", [0, 1, 2, 9, 10])
def test_a_study_with_few_trials_has_a_report(trials: int) -> None:
    page = _render(_study(trials))

    _parsed(page)
    if trials == 0:
        assert "No trial has been started yet." in page
    else:
        assert "Needs 10 complete trials" in page


def test_a_study_without_definition_has_a_report() -> None:
    state = State()
    apply(state, 1, Garbage("nothing"))

    assert "no definition yet" in _render(state)


def test_several_objectives_show_the_pareto_front() -> None:
    writer = _Writer("minimize", "maximize")
    for number in range(12):
        writer.trial("a", (float(number), float(number % 5)))

    page = _render(writer.state)

    assert [trial.number for trial in facts.pareto_front(writer.state)] == [0, 1, 2, 3, 4]
    assert "<h2>Pareto front</h2>" in page
    assert "History of objective 2 (maximize)" in page


def test_what_a_peer_says_of_itself_is_not_taken_for_the_time_of_its_trials() -> None:
    writer = _Writer()
    writer.say("a", PeerJoin({"site": "north", "earlier": "long"}))
    number = writer.trial("a", (1.0,))

    row = facts.row_of(writer.state, number)

    assert (row["site"], row["seconds"]) == ("north", 2.0)


@pytest.mark.parametrize("why", [None, "pre-empted: SIGTERM", "its time is up", "forgotten: collected", "never begun"])
def test_a_returned_trial_is_no_lost_lease_whatever_the_reason(why: str | None) -> None:
    writer = _Writer()
    writer.say("a", TrialCreate())
    writer.say("a", TrialRelease(0, 1, reason=why))
    writer.say("a", TrialCreate(prefer_waiting=True))
    writer.say("b", TrialReclaim(0, 2))

    assert [one.kind for one in stretches(writer.state)] == ["returned", "taken over"]
    (row,) = peer_rows(writer.state, 0.0, {})
    assert (row["returned"], row["lost"]) == (1, 1)
    assert {kind for kind, *_ in failures(writer.state)} == {"returned", "taken over"}


def test_the_timeline_shows_a_killed_peer_and_links_the_retry() -> None:
    writer = _Writer()
    writer.say("a", TrialCreate())
    writer.say("b", TrialReclaim(0, 1))
    writer.say("b", TrialCreate(prefer_waiting=True))
    writer.say("b", TrialFinish(1, 1, TrialState.COMPLETE, (0.5,)))

    assert [(one.owner, one.number, one.kind) for one in stretches(writer.state)] == [
        ("a", 0, "taken over"),
        ("b", 1, "complete"),
    ]
    page = _render(writer.state)
    assert "trial 0: taken over, " in page
    assert "trial 0 came back as trial 1" in page
    assert "its owner fell silent" in page


def test_the_timeline_says_that_copied_trials_are_not_in_it() -> None:
    writer = _Writer()
    start = writer.now - 86_400_000_000
    done = TrialCreate(TrialState.COMPLETE, values=(1.0,), start=start, end=start + 5_000_000)
    writer.say("a", *[done] * 6)
    writer.trial("a", (2.0,))

    found = timeline(writer.state)

    assert found is not None
    assert [one.number for one in stretches(writer.state)] == [6]
    assert found.x.name == "seconds since the first trial drawn"
    assert "6 copied trials not drawn." in found.caption


def test_a_sampled_pareto_chart_says_how_many_trials_it_draws() -> None:
    many = MOST + 100
    table = TrialTable(("minimize", "minimize"))
    table.objectives = ("a", "b")
    table.make_room(many, {})
    table.state[:] = int(TrialState.COMPLETE)
    table.values[:] = np.random.default_rng(1).random((many, 2))

    found = charts.pareto(table)

    assert found is not None
    drawn = next(one.drawn for one in found.series if one.name == "complete")
    assert MOST <= drawn < many
    assert found.caption == f"{drawn:,} of {many:,} drawn"


def test_the_report_says_one_time_for_what_was_trained() -> None:
    writer = _Writer(policy=Policy(limits=Budget()))
    writer.say("a", TrialCreate())
    writer.say("a", TrialFinish(0, 1, TrialState.COMPLETE, (1.0,), used=Used(5_000_000)))  # its owner measured

    page = _render(writer.state)

    (said,) = re.findall(r"<i>([^<]*) of training</i>", page)
    (row,) = re.findall(r"<tr><td>all</td>.*?</tr>", page)
    assert f">{said}<" in row


def test_saved_steps_are_what_pruned_trials_were_short_of() -> None:
    writer = _Writer()
    for _ in range(3):
        writer.trial("a", (1.0,), reports=10)
    writer.trial("a", None, reports=4)

    found = savings(writer.state, TrialTable.of(writer.state))
    assert (found.pruned, found.length, found.steps, found.made) == (1, 10, 6, 34)
    assert found.share == 0.15
    assert savings(State(), TrialTable.of(State())).share == 0.0


def test_importance_finds_the_parameter_that_matters() -> None:
    state = _study(120)
    found = importance(state, TrialTable.of(state))

    assert found.shares[0][0] == "lr"
    assert sum(share for _, share in found.shares) == pytest.approx(1.0)


def test_ten_thousand_trials_take_seconds_and_less_than_a_megabyte() -> None:
    state = _study(10_000)

    began = time.process_time()
    page = _render(state)

    assert time.process_time() - began < 10.0
    assert len(page.encode()) < 1_000_000
    _parsed(page)
    assert "over 6,667 complete trials" in page


def test_the_same_state_gives_the_same_page() -> None:
    assert _render(_study(40)) == _render(_study(40))


def test_a_report_says_of_which_study_and_store_it_is_and_where_it_cannot_be_written(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(str(tmp_path / "store"), "mine", directions="maximize")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)

    page = write_report(study, tmp_path / "study.html").read_text()
    with pytest.raises(OSError, match=r"nowhere"):
        write_report(study, tmp_path / "nowhere" / "report.html")

    study.close()
    assert "<h1>mine</h1>" in page
    assert (tmp_path / "store").as_uri() in page


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0.0, 1.0, False), (1e-6, 1e-1, True), (16, 256, True), (5, 5, False), (-1e9, 1e9, False)]
)
def test_ticks_are_few_and_lie_in_the_scale(low: float, high: float, log: bool) -> None:
    scale = svg.scale_of(ChartAxis(log=log), [low, high], 0, 100)

    ticks = scale.ticks()

    assert 2 <= len(ticks) <= 8
    assert all(scale.low <= tick <= scale.high for tick in ticks)
    assert [scale(tick) for tick in ticks] == sorted(scale(tick) for tick in ticks)


def test_the_means_of_replicates_stand_before_the_best_trials(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(
        tmp_path, "s", space={"n": Int(1, 2)}, policy=hopaas_p2p.StudyPolicy(replicates=2), budget=4
    )
    study.optimize(lambda trial: trial.params["n"] + (0.5 if trial.seed else 0.0))
    page = render(study.state, name="s", store="a store", now=NOW)
    study.close()
    _, _, rest = page.partition("Best means over replicates")
    table, _, _ = rest.partition("</section>")
    assert re.findall(r"<td[^>]*>([^<]*)</td>", table) == [
        "1.25 ± 0.25 (n = 2)",
        "n = 1",
        "2.25 ± 0.25 (n = 2)",
        "n = 2",
    ]
    assert "Best trials" in rest


def test_without_replicates_there_are_no_means() -> None:
    writer = _Writer()
    writer.trial("a", (1.0,))
    assert "Best means" not in render(writer.state, name="s", store="a store", now=NOW)


def test_only_the_column_that_is_named_wraps() -> None:
    assert "hp-wraps" not in str(table(["Trial", ""], [["1", "retry of 0"]], label="Trials"))
    assert str(table(["Reason", ""], [["why", ""]], label="Why", long="Reason")).count("hp-wraps") == 2
