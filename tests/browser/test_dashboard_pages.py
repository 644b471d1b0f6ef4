"""Every page of the dashboard on every kind of study that may come, without a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("streamlit")

from streamlit.testing.v1 import AppTest

import hopaas_p2p
from dashboard_app.app import PAGES
from dashboard_app.options import DashboardOptions
from dashboard_app.page_context import PageContext
from dashboard_app.pages import peers
from dashboard_app.pages.steer import stop_all
from dashboard_app.pages.trials import queue_again
from dashboard_app.replica_cache import ReplicaCache
from hopaas_p2p import access
from hopaas_p2p.core.records import Categorical, Float, Int, Policy, StudySet
from hopaas_p2p.errors import StoreUnreachable
from tests.support.dashboard_pages import cache, calm, close_all, listing_of, page, texts
from tests.support.dashboard_studies import FAIL, PRUNED, Scribe, large
from tests.support.postgres import Server
from tests.support.processes import SPACE

pytestmark = pytest.mark.filterwarnings("ignore:Series.values returning an ndarray")  # pyarrow asks pandas for it
ALL = [entry.path for entry in PAGES]
OF_A_STUDY = [entry.path for entry in PAGES if entry.study]


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_all()


def one_trial() -> Scribe:
    scribe = Scribe()
    scribe.join("a", "north")
    scribe.trial("a", 1.0, lr=1e-3, units=16.0, opt=1.0, reports=(3.0, 2.0))
    return scribe


def two_goals() -> Scribe:
    scribe = Scribe("minimize", "maximize")
    scribe.join("a", "north")
    scribe.join("b", "south")
    for at in range(24):
        scribe.trial("ab"[at % 2], at * 0.618 % 1, at * 0.755 % 1, lr=1e-3, units=8.0 + at, opt=float(at % 3))
    return scribe


def conditional() -> Scribe:
    """Define-by-run: a parameter that only some trials have, another whose choices change."""
    scribe = Scribe(space={"kind": Categorical(("cnn", "mlp")), "width": Float(0.0, 1.0), "depth": Float(1.0, 9.0)})
    scribe.join("a", "north")
    for at in range(30):
        more = {"width": at / 30} if at % 2 else {"depth": 1.0 + at / 4}
        state = FAIL if at % 7 == 6 else PRUNED if at % 5 == 4 else None
        values = () if state else (at * 0.618 % 1,)
        ended = {"state": state} if state else {}
        scribe.trial(
            "a", *values, kind=float(at % 2), reports=(2.0, 1.0), reason="boom" if state else None, **ended, **more
        )
    lost = scribe.start("a", kind=0.0)
    scribe.clock += 500
    scribe.reclaim("b", lost)
    running = scribe.start("a", kind=1.0)
    scribe.report("a", running, 0.5, 0.4)
    return scribe


STUDIES = {"empty": Scribe, "one trial": one_trial, "two goals": two_goals, "conditional": conditional}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A store for each kind of study, made when it is first asked for."""
    root = tmp_path_factory.mktemp("stores")
    made = {}
    for name, make in STUDIES.items():
        made[name] = str(root / name.replace(" ", "-"))
        make().put_into(made[name])
    made["no study"] = str(root / "nothing")
    hopaas_p2p.open_storage(made["no study"], create=True).close()
    made["ten thousand"] = str(root / "large")
    large(10_000, name="study").put_into(made["ten thousand"])
    return made


@pytest.mark.parametrize("kind", STUDIES)
@pytest.mark.parametrize("name", ALL)
def test_a_page_shows_whatever_the_study_holds(name: str, kind: str, stores: dict[str, str]) -> None:
    calm(page(name, stores[kind], "study"))


@pytest.mark.parametrize("marks", ["*a_ ", "1. ", "a\n\n"])
def test_a_note_in_which_a_browser_would_look_for_long_is_shown_as_it_is(marks: str, tmp_path: Path) -> None:
    scribe, text = one_trial(), marks * 200_000
    pieces = {f"dashboard:note_str:{at}": json.dumps(text[at * 2045 : (at + 1) * 2045]) for at in range(200)}
    scribe.say("a", StudySet(system=pieces))
    scribe.put_into(str(tmp_path / "store"))
    test = page("notes", str(tmp_path / "store"), "study", actions=False)
    calm(test)
    assert not any(marks in one.value for one in test.markdown)
    (shown,) = [one.value for one in test.text if marks in one.value]
    assert shown == text[: 1 << 18].strip()


@pytest.mark.parametrize("name", ALL)
def test_a_page_bears_ten_thousand_trials(name: str, stores: dict[str, str]) -> None:
    calm(page(name, stores["ten thousand"], "study"))


@pytest.mark.parametrize("name", [entry.path for entry in PAGES if not entry.study])
def test_a_page_about_the_store_bears_that_there_is_no_study(name: str, stores: dict[str, str]) -> None:
    calm(page(name, stores["no study"]))


@pytest.mark.parametrize("chart", ["History", "Pareto front", "Importance", "Slice", "Parallel"])
@pytest.mark.parametrize("kind", ["one trial", "two goals", "conditional", "ten thousand"])
def test_every_chart_is_drawn_or_says_why_not(chart: str, kind: str, stores: dict[str, str]) -> None:
    calm(page("explore", stores[kind], "study", query={"chart": chart}))


def test_a_filter_is_a_part_of_the_address(stores: dict[str, str]) -> None:
    query = {"from": "100", "to": "299", "sites": "site-1", "by": "p0"}
    test = calm(page("explore", stores["ten thousand"], "study", query=query))
    assert "50 of 10,000 trials pass the filter" in texts(test)
    assert test.number_input(key="from").value == 100
    test.slider(key="range-p0").set_value((0.0, 0.5))
    low = [n for n in range(100, 300) if n // 5 % 4 == 1 and n * 0.6180339887 % 1 <= 0.5]
    assert f"{len(low)} of 10,000 trials pass the filter" in texts(calm(test))
    test.number_input(key="to").set_value(None)
    assert test.query_params["from"] == "100"


def test_a_small_number_is_not_shown_as_nothing(stores: dict[str, str]) -> None:
    shown = json.loads(calm(page("trials", stores["one trial"], "study")).dataframe[0].proto.columns)

    assert shown["lr"]["type_config"]["format"] == "%.6g"
    assert "format" not in shown.get("units", {}).get("type_config", {})


@pytest.mark.parametrize(("budget", "bars"), [(None, 0), (8, 1)])
def test_only_a_study_with_a_budget_has_a_bar_that_fills(budget: int | None, bars: int, tmp_path: Path) -> None:
    scribe = Scribe(policy=Policy(budget=budget))
    scribe.trial("a", 1.0)
    scribe.put_into(str(tmp_path / "store"))

    shown = texts(calm(page("studies", str(tmp_path / "store"))))

    assert shown.count('<div class="hp-bar"') == bars
    assert shown.count("width:12.50%") == bars


def test_a_number_or_a_choice_that_is_too_long_for_its_column_is_not_cut_unmarked(tmp_path: Path) -> None:
    long = "a choice with " + "very " * 20 + "many letters"
    scribe = Scribe(space={"decay": Float(1e-8, 1.0, log=True), "kind": Categorical(("short", long, "a" * 40))})
    scribe.join("a", "north")
    for at in range(3):
        scribe.trial("a", 1e-7 * (at + 1), decay=1.08125e-6, kind=float(at))
    scribe.put_into(str(tmp_path / "store"))

    frame = calm(page("trials", str(tmp_path / "store"), "study")).dataframe[0]
    shown = json.loads(frame.proto.columns)

    assert [shown[name]["type_config"]["format"] for name in ("value", "decay")] == ["%.5e"] * 2
    assert sorted(frame.value["kind"], key=len) == ["short", "a" * 40, f"{long[:57]}…"]
    assert shown["kind"]["width"] >= 8 * 58


def test_a_small_range_can_be_filtered(tmp_path: Path) -> None:
    scribe = Scribe(space={"decay": Float(0.0, 1e-4), "units": Int(8, 256)})
    scribe.join("a", "north")
    for at in range(4):
        scribe.trial("a", 1.0, decay=2e-5 * at, units=8.0 + at)
    scribe.put_into(str(tmp_path / "store"))
    test = calm(page("trials", str(tmp_path / "store"), "study", query={"by": "decay"}))

    test.slider(key="range-decay").set_value((1e-5, 5e-5))

    assert "2 of 4 trials" in texts(calm(test))
    assert test.slider(key="range-decay").step < 1e-5


def test_the_address_of_a_trial_stays_when_another_is_the_best(stores: dict[str, str]) -> None:
    best = calm(page("trial", stores["ten thousand"], "study")).text_input(key="trial").value
    test = calm(page("trial", stores["ten thousand"], "study", query={"trial": best}))

    assert test.text_input(key="trial").value == best
    assert test.query_params["trial"] == best


def test_a_trial_that_is_not_there_is_said_to_be_missing(stores: dict[str, str]) -> None:
    test = calm(page("trial", stores["one trial"], "study", query={"trial": "7"}))

    assert "There is no trial 7. The study has trials 0 to 0." in texts(test)
    assert "Learning curve" not in texts(test)  # another one's


@pytest.mark.parametrize("name", OF_A_STUDY)
def test_a_store_that_is_away_leaves_the_last_picture(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_trial().put_into(str(tmp_path / "store"))
    test = calm(page(name, str(tmp_path / "store"), "study"))
    before = texts(test)

    def away(*_args: object) -> None:
        raise StoreUnreachable("the store is on holiday")

    one = cache(str(tmp_path / "store"))
    monkeypatch.setattr(one, "_pull", away)
    for source in one._studies.values():
        source.due = 0.0
    one.tick()
    after = texts(calm(test))
    assert one.freshness(one.studies()[0].uuid).trouble == "the store is on holiday"
    assert before.splitlines()[0] == after.splitlines()[0]


@pytest.mark.parametrize("name", OF_A_STUDY)
def test_a_study_that_is_deleted_meanwhile_is_said_to_be(name: str, tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    one_trial().put_into(url)
    test = calm(page(name, url, "study"))
    storage = hopaas_p2p.open_storage(url)
    storage.delete_study(storage.get_study_id_from_name("study"))
    storage.close()
    one = cache(url)
    one._catalog.due = 0.0
    for source in one._studies.values():
        source.due = 0.0
    one.tick()
    calm(test)


# --- steering ---


def click(test: object, label: str) -> None:
    button = next(one for one in test.button if one.label == label)  # type: ignore[attr-defined]
    button.click()


def test_pausing_is_asked_for_and_done(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    study = hopaas_p2p.open_study(url, "study", space=SPACE, budget=5)
    study.close()
    test = calm(page("steer", url, "study"))
    click(test, "Pause")
    calm(test)
    cache(url).tick()
    assert "<span>State</span><b>paused</b>" in texts(calm(test))
    study = hopaas_p2p.open_study(url, "study")
    assert study.state.status == "paused"
    study.close()


@contextmanager
def holiday(one: ReplicaCache, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The store of *one*'s only study answers nothing meanwhile, and nobody waits for it."""

    def away(*_args: object, **_more: object) -> None:
        raise StoreUnreachable("the store is on holiday.")

    (study,) = one._studies.values()
    with monkeypatch.context() as patch:
        patch.setattr(type(study.replica.log), "exchange", away)
        patch.setattr(one._peer, "patience", 0.0)
        yield


def test_what_a_store_has_not_answered_is_not_called_refused_and_is_made_when_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "store")
    hopaas_p2p.open_study(url, "study", space=SPACE, budget=5).close()
    test = calm(page("steer", url, "study"))
    one = cache(url)
    (study,) = one._studies.values()

    with holiday(one, monkeypatch):
        click(test, "Pause")
        calm(test)
        assert "the store is on holiday" in texts(test)
        assert "The change was not refused" in texts(test)

    one._peer.flush()
    one.show_written(study.listing.uuid)

    assert "<span>State</span><b>paused</b>" in texts(calm(test))
    with closing(hopaas_p2p.open_study(url, "study")) as after:
        assert after.state.status == "paused"


def test_several_trials_that_a_store_has_not_answered_are_all_queued_when_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "store")
    hopaas_p2p.open_study(url, "study", space=SPACE).close()
    test = calm(page("steer", url, "study"))
    one = cache(url)

    with holiday(one, monkeypatch):
        next(one for one in test.number_input if one.label == "How many times").set_value(3)
        click(test, "Queue")
        calm(test)
        assert "The change was not refused" in texts(test)

    one._peer.flush()
    with closing(hopaas_p2p.open_study(url, "study")) as after:
        assert len(after.state.waiting) == 3


def test_with_the_study_each_trial_that_still_runs_is_asked_to_end(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    with closing(hopaas_p2p.open_study(url, "study", space=SPACE)) as study:
        one, other = study.ask(), study.ask()
        epochs = {number: study.state.trials[number].epoch for number in (0, 1)}
        calm(page("steer", url, "study"))
        context = PageContext(cache(url), DashboardOptions(actions=True), listing_of(cache(url), "study"))
        study.tell(one, 1.0)

        stop_all(study, context, epochs)

        assert study.state.status == "stopped"
        assert study.state.trials[1].stop == "the study is stopped"
        study.tell(other, 2.0)


def test_a_form_has_a_bounded_number_of_fields(tmp_path: Path) -> None:
    scribe = Scribe(space={f"p{at}": Float(0.0, 1.0) for at in range(1000)})
    scribe.put_into(str(tmp_path))
    test = calm(page("steer", str(tmp_path), "study"))
    assert len(test.number_input) < 110
    assert "The sampler chooses 900 more parameters." in texts(test)


def test_a_trial_is_queued_from_the_form(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    study = hopaas_p2p.open_study(url, "study", space=SPACE)
    test = calm(page("steer", url, "study"))
    next(one for one in test.number_input if one.label.startswith("depth")).set_value(3)
    click(test, "Queue")
    calm(test)
    cache(url).tick()
    assert "<span>Waiting</span><b>1</b>" in texts(calm(test))
    assert study.ask().params["depth"] == 3
    study.close()


def test_a_trial_that_ended_is_queued_again_from_its_page(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    one_trial().put_into(url)
    test = calm(page("trial", url, "study", query={"trial": "0"}))
    click(test, "Queue it again")
    calm(test)
    with closing(hopaas_p2p.open_study(url, "study")) as study:
        assert list(study.state.waiting) == [1]
        assert study.trials[1].system_attrs["fixed_params"]["lr"] == 1e-3


def test_nothing_is_offered_that_is_not_allowed(stores: dict[str, str]) -> None:
    test = calm(page("steer", stores["one trial"], "study", actions=False))
    assert not test.button
    assert "This dashboard is read-only" in texts(test)
    labels = [
        one.label
        for one in calm(
            page("trials", stores["conditional"], "study", actions=False, query={"view": "Failures"})
        ).button
    ]
    assert not any("again" in label for label in labels)


def test_a_viewers_monitor_offers_nothing_that_the_store_would_refuse(postgres: Server, postgres_url: str) -> None:
    study = hopaas_p2p.open_study(postgres_url, "study", space=SPACE)
    access.add_user(postgres_url, "victor")
    access.grant(postgres_url, "study", "victor", "viewer")
    name, _, password = access.create_token(postgres_url, "victor").secret.reveal().partition(":")
    url = postgres.url("store", user=name, password=password)
    for one in OF_A_STUDY:
        calm(page(one, url, "study"))
    test = calm(page("steer", url, "study"))
    assert "You may view this study but not change it" in texts(test)
    assert not any(one.label in ("Pause", "Queue") for one in test.button)
    assert "Ask one of its owners" in texts(test)
    assert study.state.status == "running"
    study.close()


def test_a_group_of_failures_is_queued_again_at_once(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    scribe = Scribe()
    scribe.join("a", "north", "n1")
    for at in range(4):
        scribe.trial("a", state=FAIL, reason=f"ValueError: {at} is too much", lr=1e-3 * (1 + at), units=8.0, opt=0.0)
    scribe.trial("a", 1.0, lr=1e-3, units=8.0, opt=0.0)
    scribe.put_into(url)
    test = calm(page("trials", url, "study", query={"view": "Failures"}))
    assert "ValueError: N is too much" in texts(test)
    test.session_state["group"] = ("error", "ValueError: N is too much", "north", "n1")
    calm(test)
    assert "Queue 4 again" in [one.label for one in test.button]
    context = PageContext(cache(url), DashboardOptions(actions=True), listing_of(cache(url), "study"))
    assert queue_again(context, [0, 1, 2, 3]) == "Queued 4 as trials 5 to 8."
    assert queue_again(context, [0, 1, 2, 3]) == "Queued 0; 4 had been retried in the meantime."
    study = hopaas_p2p.open_study(url, "study")
    assert [study.trials[number].system_attrs["fixed_params"]["lr"] for number in (5, 8)] == [1e-3, 4e-3]
    study.close()


# --- administration ---


def test_users_tokens_and_grants_are_managed(postgres: Server, postgres_url: str) -> None:
    hopaas_p2p.open_study(postgres_url, "study", space=SPACE).close()
    test = calm(page("admin", postgres_url, query={"part": "People"}))
    assert "No users yet" in texts(test)
    assert "No token yet" in texts(test)
    test.text_input[0].set_value("vera")
    click(test, "Add")
    calm(test)
    assert [user.name for user in access.users(postgres_url)] == ["vera"]
    next(one for one in test.selectbox if one.label == "Token for").set_value("vera")
    click(test, "Create a token")
    calm(test)
    (token,) = access.tokens(postgres_url)
    secret = test.code[0].value
    assert secret.startswith(f"{token.name}:")
    assert secret not in texts(calm(test)).replace("\\", "")  # shown once
    test = calm(page("admin", postgres_url, query={"part": "Grants"}))
    next(one for one in test.text_input if one.label == "User").set_value("vera")
    click(test, "Share")
    calm(test)
    assert {(one.user, one.role) for one in access.grants(postgres_url, "study")} >= {("vera", "viewer")}
    test = calm(page("admin", postgres_url, query={"part": "People"}))
    next(one for one in test.selectbox if one.label == "Revoke a token").set_value(token.name)
    click(test, "Revoke it")
    calm(test)
    assert access.tokens(postgres_url) == []


@pytest.mark.parametrize("role", ["owner", "nothing"])
def test_a_grant_for_a_deleted_study_is_not_given_or_taken_in_a_namesake(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    access.add_user(postgres_url, "vera")
    hopaas_p2p.open_study(postgres_url, "study", space=SPACE).close()
    test = calm(page("admin", postgres_url, query={"part": "Grants"}))
    monkeypatch.setattr(cache(postgres_url), "_pull", lambda _log: None)  # it has not read of the deletion yet
    with closing(hopaas_p2p.open_storage(postgres_url)) as storage:
        storage.delete_study(storage.get_study_id_from_name("study"))
    hopaas_p2p.open_study(postgres_url, "study", space=SPACE).close()
    access.grant(postgres_url, "study", "vera", "viewer")

    next(one for one in test.text_input if one.label == "User").set_value("vera")
    test.button_group[-1].set_value(role)
    click(test, "Share")

    assert "deleted" in texts(calm(test))
    assert ("vera", "viewer") in {(one.user, one.role) for one in access.grants(postgres_url, "study")}


def test_who_has_signed_in_creates_and_revokes_own_tokens_and_no_others(postgres_url: str) -> None:
    access.add_user(postgres_url, "vera")
    access.add_user(postgres_url, "olga")
    others = access.create_token(postgres_url, "olga", label="of Olga")

    def own(person: str, *, actions: bool = True) -> AppTest:
        query = {"part": "Your tokens"}
        return calm(page("admin", postgres_url, query=query, person=person, actions=actions))

    test = own("vera")
    assert "No token yet" in texts(test)
    assert "of Olga" not in texts(test)
    assert [one.label for one in test.selectbox] == ["Revoke a token"], "nobody chooses for whom"
    click(test, "Create a token")
    calm(test)
    (token,) = access.tokens(postgres_url, user="vera")
    assert test.code[0].value.startswith(f"{token.name}:")
    (choice,) = own("vera").selectbox
    assert choice.options == [token.name]
    choice.set_value(token.name)
    test = own("vera")
    test.selectbox[0].set_value(token.name)
    click(test, "Revoke it")
    calm(test)
    assert [one.name for one in access.tokens(postgres_url)] == [others.name]
    assert "no user eve" in texts(own("eve"))
    for test in (own("vera", actions=False), own("eve")):
        assert not any("token" in one.label for one in test.button)
    assert "Only administrators can manage users and tokens" in texts(
        calm(page("admin", postgres_url, query={"part": "People"}, person="vera"))
    )


def test_nobody_has_more_than_twenty_tokens_from_a_page(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    access.add_user(postgres_url, "vera")
    access.create_token(postgres_url, "vera")
    monkeypatch.setattr("dashboard_app.pages.admin._OWN_TOKENS", 1)
    test = calm(page("admin", postgres_url, query={"part": "Your tokens"}, person="vera"))
    assert "The limit is 1 tokens" in texts(test)
    assert not any(one.label == "Create a token" for one in test.button)


def test_a_store_without_users_says_so(stores: dict[str, str]) -> None:
    for part in ("People", "Grants"):
        assert "manages users of Postgres stores only" in texts(
            calm(page("admin", stores["one trial"], query={"part": part}))
        )


def test_what_differs_between_trials_is_marked_and_the_rest_can_be_left_out(stores: dict[str, str]) -> None:
    chosen = {"trial": "0, 1"}
    whole = texts(page("trial", stores["conditional"], "study", query=chosen).run())
    short = texts(page("trial", stores["conditional"], "study", query={**chosen, "differing": "true"}).run())
    assert "trial 0" in whole
    assert "differs" in whole
    assert "attempt" in whole
    assert "attempt" not in short
    one = texts(page("trial", stores["conditional"], "study", query={"trial": "0, 99999"}).run())
    assert "There is no trial 99999." in one


def test_a_trial_shows_all_of_its_parameters(tmp_path: Path) -> None:
    names = [f"p{at}" for at in range(120)]
    scribe = Scribe(space={name: Float(0.0, 1.0) for name in names})
    scribe.join("a", "north")
    scribe.trial("a", 1.0, **dict.fromkeys(names, 0.5))
    scribe.trial("a", 2.0, **dict.fromkeys(names, 0.25))
    scribe.put_into(str(tmp_path / "store"))
    for chosen in ("0", "0, 1"):
        shown = texts(calm(page("trial", str(tmp_path / "store"), "study", query={"trial": chosen})))
        assert [name for name in names if f"{name}</td>" not in shown and f"{name} <" not in shown] == []


def test_a_table_makes_the_rows_that_it_shows_and_counts_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scribe = Scribe()
    for at in range(100):
        scribe.join(f"peer{at}", "north")
        scribe.trial(f"peer{at}", 1.0)
    scribe.put_into(str(tmp_path / "store"))
    made: list[object] = []
    make = peers._peer  # noqa: SLF001
    monkeypatch.setattr(peers, "_peer", lambda *said: made.append(said) or make(*said))  # type: ignore[func-returns-value]
    assert "and 40 more that run no trial now" in texts(calm(page("peers", str(tmp_path / "store"), "study")))
    assert len(made) == 60
