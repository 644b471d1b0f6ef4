"""What a notebook shows: views and plots that hold whatever a store holds, and a view that keeps itself up to date."""

from __future__ import annotations

import html.parser
import itertools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

pytest.importorskip("nbclient")

import jupyter_client
import nbclient
import nbformat

import hopaas_p2p
from hopaas_p2p.errors import InvalidInput, StoreUnreachable
from hopaas_p2p.notebook import watch as watch_module
from hopaas_p2p.notebook.watch import Watching
from hopaas_p2p.study import Study
from tests.support.processes import ROOT, cli, environment, start, states, until
from tests.support.studies import opened_study

_names = itertools.count()
PLOTS = ["history", "importances", "slice", "timeline", "intermediate"]
SPACE = {
    "lr": hopaas_p2p.Float(1e-4, 1e-1, log=True),
    "depth": hopaas_p2p.Int(1, 8),
    "kind": hopaas_p2p.Categorical(("flat", "steep", None, True)),
}
EVIL = "<img src=x onerror=alert(1)>\"'</script>\u202e"


@pytest.fixture
def new() -> Iterator[Callable[..., Study]]:
    """Makes studies in memory, and closes them."""
    opened: list[Study] = []

    def make(name: str = "s", **options: Any) -> Study:
        opened.append(opened_study(f"memory://notebook-{next(_names)}", name, **{"space": SPACE, **options}))
        return opened[-1]

    yield make
    for study in opened:
        study.close()


def objective(trial: hopaas_p2p.Trial) -> float:
    for step in range(3):
        trial.report(trial.params["depth"] / (step + 1), step=step)
    if trial.number % 5 == 4:
        trial.prune()
    return float(trial.params["lr"] + trial.params["depth"])


class _Page(html.parser.HTMLParser):
    """The tags, attributes and texts of some HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def shown(thing: Any) -> _Page:
    """What a notebook shows of it, after a look that nothing in it can run."""
    text = thing._repr_html_()
    page = _Page(text)
    assert not {"script", "img", "iframe", "link", "object"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert "\u202e" not in text
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(drawing)
    return page


@pytest.mark.parametrize("plot", PLOTS)
def test_a_plot_of_nothing_says_so_and_one_of_many_trials_draws(new: Callable[..., Study], plot: str) -> None:
    study = new(budget=30)

    before = shown(getattr(study.plot, plot)())
    study.optimize(objective)
    after = shown(getattr(study.plot, plot)())

    assert "svg" not in before.tags
    assert "svg" in after.tags


def test_plots_and_views_escape_what_strangers_wrote(
    new: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOPAAS_SITE", EVIL)
    space = {EVIL.replace("/", ""): hopaas_p2p.Categorical((EVIL, "b")), "x": hopaas_p2p.Float(0, 1)}
    study = new("<b>bold<script>", space=space)
    for number in range(12):
        with study.trial() as trial:
            trial.set_user_attr(EVIL, EVIL)
            trial.report(number, step=0)
            trial.report(number / 2, step=1)
            trial.tell(number)
    with pytest.raises(ValueError, match="img"), study.trial():
        raise ValueError(EVIL)

    for plot in PLOTS:
        shown(getattr(study.plot, plot)())
    assert "<b>bold<script> · idle" in shown(study).texts


def test_the_view_of_a_study_says_how_it_stands(new: Callable[..., Study]) -> None:
    study = new(budget=12)
    assert "No trials yet." in shown(study).texts

    study.optimize(objective, n_trials=10)
    running = study.ask()
    running.report(0.5, step=7)
    study.storage.flush()
    study.enqueue_trial({"lr": 0.01, "depth": 3, "kind": None})

    said = " ".join(shown(study).texts)
    for part in ("8 complete", "2 pruned", "1 running", "1 waiting", "11 of 12 trials used", "0.5 at step 7"):
        assert part in said
    assert f"trial {study.best_trial.number}: lr = " in said


def test_several_objectives_have_plots_of_each_and_a_front(new: Callable[..., Study]) -> None:
    study = new(directions=["minimize", "maximize"], budget=15)
    study.optimize(lambda trial: (trial.params["lr"], trial.params["depth"]))

    assert "svg" in shown(study.plot.history(1)).tags
    assert "svg" not in shown(study.plot.intermediate()).tags
    assert any("Pareto front" in text for text in shown(study).texts)
    with pytest.raises(InvalidInput, match="objective must be 0 to 1"):
        study.plot.history(2)


def test_parameters_may_be_chosen_and_a_wrong_one_is_named(new: Callable[..., Study]) -> None:
    study = new(budget=12)
    study.optimize(objective)

    assert shown(study.plot.slice(["lr"])).tags.count("svg") == 1
    with pytest.raises(InvalidInput, match="no parameter 'width'; it has lr, depth, kind"):
        study.plot.slice(["width"])


def test_infinities_and_missing_parameters_are_left_out(new: Callable[..., Study]) -> None:
    study = new(space=None)
    for value in (float("inf"), 1.0, -float("inf"), 2.0):
        with study.trial() as trial:
            trial.suggest_float("x", 0, 1)
            if value == 2.0:
                trial.suggest_int("y", 1, 2)
            trial.report(float("nan"), step=0)
            trial.tell(value)

    for plot in PLOTS:
        shown(getattr(study.plot, plot)())


def test_ranges_of_one_value_and_values_at_the_edge_of_what_numbers_hold_are_drawn(new: Callable[..., Study]) -> None:
    study = new(space=None, sampler=optuna.samplers.RandomSampler(seed=1))
    for number in range(12):
        with study.trial() as trial:
            trial.suggest_float("one", 1, 1)
            trial.suggest_categorical("only", ["a"])
            trial.suggest_float("tiny", 1e-300, 1e300, log=True)
            trial.suggest_int("huge", 0, 2**53)
            trial.report(1e308, step=0)
            trial.report(-1e308, step=10**12)
            trial.tell(1e308 if number % 2 else -1e308)

        for plot in PLOTS:
            shown(getattr(study.plot, plot)())
        shown(study)


def test_looking_writes_nothing_and_asks_the_store_for_nothing(
    new: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = new(budget=12)
    study.optimize(objective)
    asked: list[Any] = []
    log = study.handle.log.log
    monkeypatch.setattr(log, "exchange", lambda *words: asked.append(words))

    for plot in PLOTS:
        getattr(study.plot, plot)()
    _ = study._repr_html_()

    assert asked == []


# --- watch ---


class _Screen:
    """What a notebook's front end would show."""

    def __init__(self) -> None:
        self.pictures: list[str] = []

    def display(self, html: str, *, display_id: bool) -> _Screen:
        assert display_id
        self.pictures.append(html)
        return self

    def update(self, html: str) -> None:
        self.pictures.append(html)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> _Screen:
    screen = _Screen()
    monkeypatch.setattr(watch_module, "_notebook", lambda _name: (screen.display, str))
    return screen


def test_a_watched_study_is_drawn_anew_when_something_happened_and_till_its_end(
    new: Callable[..., Study], screen: _Screen
) -> None:
    study = new(budget=6)

    watching = study.watch(interval=0.01)
    assert "No trials yet." in screen.pictures[0]
    study.optimize(objective, n_trials=3)
    until(lambda: "2 of 6" in screen.pictures[-1] or "3 of 6" in screen.pictures[-1], 30)
    assert repr(watching) == "<watching 's', live>"
    assert watching.wait(timeout=0.01) is False
    study.optimize(objective)

    assert watching.wait(timeout=30) is True
    assert "s · done" in screen.pictures[-1]
    assert "6 of 6 trials used" in screen.pictures[-1]
    assert "<svg" in screen.pictures[-1]


def test_a_view_ends_with_the_last_trial_even_if_that_ends_during_a_look(
    new: Callable[..., Study], screen: _Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, is_over = new(budget=2), Study.is_over

    def ends_meanwhile(self: Study) -> bool:
        self.optimize(objective)
        return is_over(self)

    monkeypatch.setattr(Study, "is_over", ends_meanwhile)
    assert study.watch(interval=0.01).wait(timeout=30) is True
    assert "2 of 2 trials used" in screen.pictures[-1]


def test_an_outage_is_shown_and_passes(
    new: Callable[..., Study], screen: _Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = new(budget=6)
    study.optimize(objective, n_trials=2)
    watching = study.watch(interval=0.01)

    def out_of_reach() -> None:
        raise StoreUnreachable("the store <b>sleeps</b>")

    with monkeypatch.context() as patch:
        patch.setattr(study.handle, "refresh", out_of_reach)
        until(lambda: "the store &lt;b&gt;sleeps" in screen.pictures[-1], 30)
        assert "2 of 6 trials used" in screen.pictures[-1]
    until(lambda: "sleeps" not in screen.pictures[-1], 30)

    watching.stop()


def test_a_second_watch_takes_the_place_of_the_first_and_a_deleted_study_ends_it(
    new: Callable[..., Study], screen: _Screen
) -> None:
    study = new()
    first = study.watch(interval=0.01)
    second = study.watch(interval=0.01)
    assert repr(first) == "<watching 's', stopped>"
    assert first.wait(timeout=10) is False

    study.storage.delete_study(study.study_id)

    second.wait(timeout=30)
    assert "No study with study_id" in screen.pictures[-1] or "deleted" in screen.pictures[-1]


def test_outside_jupyter_the_cure_is_named(new: Callable[..., Study]) -> None:
    study = new()

    with pytest.raises(InvalidInput, match="hopaas-p2p watch s"):
        study.watch()
    with pytest.raises(InvalidInput, match="positive number of seconds"):
        Watching(study, interval=0)


def _executed(book: nbformat.NotebookNode, directory: Path, monkeypatch: pytest.MonkeyPatch, **env: str) -> None:
    for name, value in environment(**env).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONWARNINGS", "")  # the kernel's own
    nbclient.NotebookClient(book, timeout=120, resources={"metadata": {"path": str(directory)}}).execute()


def test_in_a_real_kernel_the_view_is_replaced_in_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
import hopaas_p2p
study = hopaas_p2p.open_study("store", "s", space={"x": hopaas_p2p.Float(0, 1)}, budget=5)
watching = study.watch(interval=0.05)
study.optimize(lambda trial: trial.params["x"])
print(watching.wait(60))
watching
"""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])

    _executed(book, tmp_path, monkeypatch)

    view, *printed = [one for one in book.cells[0].outputs if one.get("name") != "stderr"]
    said = "".join(one.text for one in printed)
    assert "trial 4: " in said, "not on stderr, which is shown in red"
    assert said.endswith("True\n")
    assert "5 of 5 trials used" in view.data["text/html"]
    assert "s · done" in view.data["text/html"]


def test_the_view_goes_on_after_its_cell_while_others_run(tmp_path: Path) -> None:
    env = {**environment(), "PYTHONWARNINGS": ""}
    watch = """
import hopaas_p2p
study = hopaas_p2p.open_study("store", "s", space={"x": hopaas_p2p.Float(0, 1)}, budget=5)
watching = study.watch(interval=0.05)
"""
    manager, client = jupyter_client.manager.start_new_kernel(startup_timeout=60, env=env, cwd=str(tmp_path))
    try:
        first = client.execute(watch)
        shown = _message(client, lambda one: one["msg_type"] == "display_data")
        _message(client, lambda one: _is_idle(one, first))
        client.execute("study.optimize(lambda trial: trial.params['x'], n_trials=3)")

        update = _message(
            client, lambda one: one["msg_type"] == "update_display_data" and "3 of 5" in str(one["content"])
        )

        assert update["content"]["transient"] == shown["content"]["transient"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _is_idle(message: dict[str, Any], request: str) -> bool:
    return message["content"].get("execution_state") == "idle" and message["parent_header"].get("msg_id") == request


def _message(client: Any, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The next message of the kernel that is wanted; an error of the kernel's ends the wait."""
    while True:
        message: dict[str, Any] = client.get_iopub_msg(timeout=60)
        assert message["msg_type"] != "error", message["content"]["traceback"]
        if wanted(message):
            return message


def _both_have_finished_some(study: Study) -> bool:
    state = study.state
    return len({trial.owner for trial in state.trials}) >= 2 and state.counts[1] >= 2


def test_the_example_joins_a_study_on_which_two_jobs_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = ["--space", "lr=float(1e-3,1,log)", "--space", "depth=int(1,9)"]
    cli("study", "create", "demo", "-s", "store", *space, cwd=tmp_path)
    train = ["python", str(ROOT / "examples" / "train.py"), "--lr", "{lr}", "--depth", "{depth}", "--epochs", "3"]
    words = ["worker", "-s", "store", "--study", "demo", "--", *train, "--seconds", "0.1"]
    jobs = [start(*words, cwd=tmp_path, HOPAAS_SITE=site) for site in ("north", "south")]
    try:
        study = hopaas_p2p.open_study(str(tmp_path / "store"), "demo", create=False)
        until(lambda: _both_have_finished_some(study), 60, what="two jobs at work")
        book = nbformat.read(ROOT / "examples" / "campaign.ipynb", as_version=4)

        _executed(book, tmp_path, monkeypatch, HOPAAS_STORE=str(tmp_path / "store"))

        codes = [job.wait(timeout=60) for job in jobs]
    finally:
        for job in jobs:
            job.kill()
            job.wait()
    (by_hand,) = [trial for trial in study.trials if trial.user_attrs.get("by") == "hand"]
    assert codes == [0, 0]
    assert by_hand.params == {"lr": 0.3, "depth": 5}
    assert by_hand.state.is_finished()
    assert study.provenance(by_hand.number)["site"] in ("north", "south")
    assert set(states(study)) <= {"COMPLETE", "PRUNED"}
    outputs = [one for cell in book.cells for one in cell.get("outputs", []) if "data" in one]
    shown_by_cell = [one.data.get("text/html", "") for one in outputs]
    assert sum("<svg" in text for text in shown_by_cell) >= 5
    study.close()
