"""The page of rungs: who stands where, what was promoted where, and curves that go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("streamlit")

from dashboard_app.views import rungs
from hopaas_p2p.analysis import configurations, echarts
from tests.support.dashboard_pages import calm, close_all, page, texts
from tests.support.dashboard_studies import Scribe, with_population, with_rungs

pytestmark = pytest.mark.filterwarnings("ignore:Series.values returning an ndarray")  # pyarrow asks pandas for it


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_all()


def test_the_bars_of_a_rung_add_up_to_those_that_came() -> None:
    chart = rungs.standing(with_rungs().state)
    assert chart is not None
    went_on, wait = (source["source"]["configurations"].tolist() for source in echarts.option(chart)["dataset"])
    assert (went_on, wait) == ([3, 1], [6, 2])
    assert "after 1 epoch: 9 reached it, 3 promoted, 6 waiting" in chart.alt


def test_a_curve_goes_through_all_trials_of_a_configuration() -> None:
    state = with_rungs().state
    chart = rungs.curves(state, configurations.rows(state))
    assert chart is not None
    drawn = {
        one["name"]: source["source"]
        for one, source in zip(echarts.option(chart)["series"], echarts.option(chart)["dataset"], strict=True)
    }
    best = drawn["best"]
    assert best["epochs"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert set(best["configuration"]) == {0}
    assert set(drawn["paused"]["configuration"]) == {1, 2}  # the others have one report each: a point is no curve
    assert sorted(zip(drawn["promoted"]["epochs"], drawn["promoted"]["configuration"], strict=True)) == [
        (1, 0), (1, 1), (1, 2), (3, 0),
    ]  # fmt: skip


def test_a_study_without_rungs_has_no_chart() -> None:
    assert rungs.standing(Scribe().state) is None
    assert rungs.curves(Scribe().state, []) is None


def test_the_page_says_where_each_configuration_stands_and_what_comes_next(tmp_path: Path) -> None:
    with_rungs().put_into(str(tmp_path / "store"))
    shown = texts(calm(page("pruning", str(tmp_path / "store"), "study")))
    for words in (
        "Configurations at each rung",
        "Promotions",
        "north",
        "south",
        "rungs(min=1, max=9, eta=3",
        "<span>Configurations</span><b>9</b>",  # each counts once, however many trials it took
        "<span>Waiting at a rung</span><b>8</b>",
        "<span>Promoted</span><b>4</b><i>3 continued at another site",  # the best of all went back
    ):
        assert words in shown, words


def test_the_page_of_a_study_without_rungs_says_how_to_have_them(tmp_path: Path) -> None:
    Scribe().put_into(str(tmp_path / "store"))
    assert "fidelity=hopaas_p2p.Rungs" in texts(calm(page("pruning", str(tmp_path / "store"), "study")))


def test_a_family_tree_says_who_descends_from_whom() -> None:
    state = with_population().state
    (copy,) = configurations.copies(state)
    assert (copy.first, copy.source, copy.epochs, copy.site_before, copy.site) == (4, 0, 2, "north", "south")
    assert configurations.families(state) == {0: [0], 1: [1], 2: [2], 3: [3], 4: [0, 4]}
    chart = rungs.tree(state)
    assert chart is not None
    drawn = {
        one["name"]: source["source"]
        for one, source in zip(echarts.option(chart)["series"], echarts.option(chart)["dataset"], strict=True)
    }
    assert drawn["copied"]["row"].tolist()[:2] == [1, 5]
    assert drawn["led to the best"]["trial"].tolist()[::3] == [0, copy.trial]
    assert drawn["led to the best"]["epochs"].tolist()[:2] == [0, 2]
    assert "5 members, 1 of which copied another member" in chart.alt
    assert rungs.tree(with_rungs().state) is None


def test_the_page_of_a_population_shows_its_family_and_its_copies(tmp_path: Path) -> None:
    with_population().put_into(str(tmp_path / "store"))
    shown = texts(calm(page("pruning", str(tmp_path / "store"), "study")))
    for words in (
        "population(size=5, every=2, max=4",
        "Family tree",
        "Copies",
        "Descends from",
        "Configurations at each rung",
    ):
        assert words in shown, words
    assert "Promotions" not in shown
