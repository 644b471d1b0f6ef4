"""The page of rungs: who stands where, what was promoted where, and curves that go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("streamlit")

from dashboard_app.views import rungs
from hopaas_p2p.analysis import charts, echarts
from hopaas_p2p.analysis.table import TrialTable
from tests.support.dashboard_pages import calm, close_all, page, texts
from tests.support.dashboard_studies import Scribe, with_population, with_rungs

pytestmark = pytest.mark.filterwarnings("ignore:Series.values returning an ndarray")  # pyarrow asks pandas for it


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_all()


def test_a_curve_goes_through_all_trials_of_a_configuration() -> None:
    state = with_rungs().state
    chart = charts.curves(state, TrialTable.of(state))
    assert chart is not None
    drawn = {
        one["name"]: source["source"]
        for one, source in zip(echarts.option(chart)["series"], echarts.option(chart)["dataset"], strict=True)
    }
    best = drawn["best"]
    assert best["step"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    roots = {name: {state.configurations.root(one) for one in set(some["trial"])} for name, some in drawn.items()}
    assert roots["best"] == {0}
    assert roots["pruned or paused"] == {1, 2}  # the others have one report each: a point is no curve


def test_a_curve_of_a_population_begins_with_the_first_step() -> None:
    state = with_population().state
    chart = charts.curves(state, TrialTable.of(state))
    assert chart is not None
    best = next(layer.data for layer in chart.series if layer.name == "best")
    assert best["step"] == [1, 2, 3, 4]
    assert best["value"] == pytest.approx([1.0, 0.5, 0.11, 0.1])  # of the member that it copied, and its own


def test_the_page_says_where_each_configuration_stands_and_what_comes_next(tmp_path: Path) -> None:
    with_rungs().put_into(str(tmp_path / "store"))
    shown = texts(calm(page("pruning", str(tmp_path / "store"), "study")))
    for words in (
        "Configurations at each rung",
        '<td class="hp-number">9</td><td class="hp-number">3</td><td class="hp-number">6</td>',
        "north",
        "south",
        "rungs(min=1, max=9, eta=3",
        "<span>Configurations</span><b>9</b>",  # each counts once, however many trials it took
        "<span>Waiting at a rung</span><b>8</b>",
        "<span>Promoted</span><b>4</b>",
        "<span>Moved</span><b>2</b><i>continued at another site",
    ):
        assert words in shown, words


def test_the_page_of_a_study_without_rungs_says_how_to_have_them(tmp_path: Path) -> None:
    Scribe().put_into(str(tmp_path / "store"))
    assert "fidelity=hopaas_p2p.Rungs" in texts(calm(page("pruning", str(tmp_path / "store"), "study")))


def test_a_family_tree_says_who_descends_from_whom() -> None:
    state = with_population().state
    chart = rungs.tree(state)
    assert chart is not None
    drawn = {
        one["name"]: source["source"]
        for one, source in zip(echarts.option(chart)["series"], echarts.option(chart)["dataset"], strict=True)
    }
    assert drawn["copied"]["row"].tolist()[:2] == [1, 5]
    assert drawn["led to the best"]["trial"].tolist()[::3] == [0, 9]
    assert drawn["led to the best"]["epochs"].tolist()[:2] == [0, 2]
    assert "5 members, 1 of which copied another member" in chart.alt
    assert rungs.tree(with_rungs().state) is None


def test_the_page_of_a_population_shows_its_family_and_its_copies(tmp_path: Path) -> None:
    with_population().put_into(str(tmp_path / "store"))
    shown = texts(calm(page("pruning", str(tmp_path / "store"), "study")))
    for words in ("population(size=5, every=2, max=4", "Family tree", "Configurations at each rung"):
        assert words in shown, words
