"""Whatever a log holds, a peer goes on: hostile records, through `apply` and then through every reader.

Each record is one that a worker's token may write. It is refused, or it harms nobody who reads the study afterwards.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import importlib.util
import json
import math
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import optuna
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("streamlit")

from dashboard_app.app import PAGES
from dashboard_app.frames import Frame
from dashboard_app.views import live, metrics, studies, table, trial
from hopaas_p2p import notes, open_storage, open_study
from hopaas_p2p.analysis import charts, configurations, failures
from hopaas_p2p.analysis.importance import importance
from hopaas_p2p.analysis.peers import peer_rows
from hopaas_p2p.analysis.savings import savings
from hopaas_p2p.analysis.spending import spending
from hopaas_p2p.analysis.timeline import timeline
from hopaas_p2p.cli.main import cli
from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.attributes import SPACE as LATER_SPACE
from hopaas_p2p.core.catalog import Listing
from hopaas_p2p.core.records import (
    Budget,
    Categorical,
    Checkpoint,
    Commit,
    Distribution,
    Float,
    Int,
    PeerDrain,
    PeerJoin,
    Policy,
    Price,
    Stamp,
    StudyControl,
    StudyDefine,
    StudySet,
    TrialCheckpoint,
    TrialClaim,
    TrialCreate,
    TrialFinish,
    TrialReclaim,
    TrialRelease,
    TrialSet,
    TrialState,
    TrialStop,
    TrialTakeOver,
    Until,
    Used,
)
from hopaas_p2p.core.state import COMPLETE, FAIL, WAITING, State
from hopaas_p2p.core.validity import possible_priors
from hopaas_p2p.errors import InvalidInput, NoWork
from hopaas_p2p.files.artifacts import StudyArtifacts
from hopaas_p2p.moving import tables
from hopaas_p2p.moving.records import of_state
from hopaas_p2p.peer.liveness import UNKNOWN, owners_of
from hopaas_p2p.report.page import render
from hopaas_p2p.search import priors
from hopaas_p2p.spec.space import as_attribute
from hopaas_p2p.storage import Storage
from hopaas_p2p.trackers import Export
from hopaas_p2p.trackers.base import new_files
from hopaas_p2p.trackers.view import RunView, links
from tests.support import dashboard_pages
from tests.support.dashboard_studies import SPACE, Scribe, with_population, with_rungs
from tests.support.needs import missing

NAN, INF = math.nan, math.inf
NOW: Final = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
GOOD: Final = {"lr": 0.01, "units": 16.0, "opt": 1.0}
DEEP: Final = "[" * 900 + "]" * 900
SAMPLERS: Final[dict[str, Callable[[], optuna.samplers.BaseSampler]]] = {
    "TPE": lambda: optuna.samplers.TPESampler(seed=1, n_startup_trials=2),
    "multivariate": lambda: optuna.samplers.TPESampler(
        seed=1, n_startup_trials=2, multivariate=True, group=True, constant_liar=True
    ),
    "random": lambda: optuna.samplers.RandomSampler(seed=1),
    "NSGA-II": lambda: optuna.samplers.NSGAIISampler(seed=1, population_size=2),
    "NSGA-III": lambda: optuna.samplers.NSGAIIISampler(seed=1, population_size=2),
    "QMC": lambda: optuna.samplers.QMCSampler(seed=1, warn_independent_sampling=False),
    "GP": lambda: optuna.samplers.GPSampler(seed=1, n_startup_trials=2),
    "grid": lambda: optuna.samplers.GridSampler({"lr": [1e-3, 1e-2], "units": [8, 16], "opt": ["adam"]}, seed=1),
    "partial": lambda: optuna.samplers.PartialFixedSampler({"units": 16}, optuna.samplers.TPESampler(seed=1)),
}
QUICK: Final = ("TPE", "multivariate", "NSGA-II", "NSGA-III")


def need(sampler: str) -> None:
    """Skip where the libraries of this sampler are not installed."""
    for module in {"QMC": ["scipy"], "GP": ["scipy", "torch"]}.get(sampler, []):
        if importlib.util.find_spec(module) is None:
            missing(f"{module}, which the {sampler} sampler uses")


pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:Fixed parameter"),
    pytest.mark.filterwarnings("ignore:Clip non-finite values"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of numpy, in Optuna's samplers
    pytest.mark.filterwarnings("ignore:Series.values returning an ndarray"),  # pyarrow asks pandas for it
]


def ended(**content: Any) -> TrialCreate:
    """A COMPLETE trial, as an import writes it."""
    return TrialCreate(**({"state": COMPLETE, "params": GOOD, "values": (0.5,)} | content))


def with_param(name: str, value: float) -> TrialCreate:
    return ended(params={**GOOD, name: value})


def with_dist(name: str, value: float, distribution: Distribution) -> TrialCreate:
    return ended(params={**GOOD, name: value}, dists={name: distribution})


def with_system(key: str, text: str) -> TrialCreate:
    return ended(system={key: text})


REFUSED: Final[dict[str, Any]] = {
    "a step of 1e-300": with_dist("new", 0.5, Float(0, 1, step=1e-300)),
    "a grid beyond 2^53": with_dist("new", 0.5, Float(0, 1e6, step=1e-12)),
    "a range that overflows": with_dist("new", 0.5, Float(-1e308, 1e308)),
    "a middle that overflows": with_dist("new", 1e308, Float(1e308, 1.7e308)),
    "log bounds at the ends of doubles": with_dist("new", 1.0, Float(5e-324, 1e308, log=True)),
    "a float NaN": with_param("lr", NAN),
    "a float inf": with_param("lr", INF),
    "a float -inf": with_param("lr", -INF),
    "a float beyond all reach": with_param("lr", 1e308),
    "0 on a log scale": with_param("lr", 0.0),
    "inf beside a value at the end of doubles": with_dist("new", INF, Float(1.7e308, 1.7e308)),
    "-inf beside a value at the end of doubles": with_dist("new", -INF, Float(1.7e308, 1.7e308, step=1.0)),
    "1 beside a value at the end of doubles": with_dist("new", 1.0, Float(1.7e308, 1.7e308)),
    "a value that makes a grid too fine": with_dist("new", 1e5, Float(0, 1, step=1e-12)),
    "half an int on a log scale": with_dist("new", 0.5, Int(1, 8, log=True)),
    "an int NaN": with_param("units", NAN),
    "an int 1e300": with_param("units", 1e300),
    "a choice of 99": with_param("opt", 99.0),
    "a choice of -1": with_param("opt", -1.0),
    "a choice NaN": with_param("opt", NAN),
    "a choice inf": with_param("opt", INF),
    "another kind": TrialSet(8, 1, {"lr": 3.0}, {"lr": Int(1, 5)}),
    "another log flag": TrialSet(8, 1, {"lr": 0.5}, {"lr": Float(0, 1)}),
    "other choices": TrialSet(8, 1, {"opt": 0.0}, {"opt": Categorical(("lion", "tiger"))}),
    "a time in the year 20,000": ended(start=1 << 59),
    "a time before all": ended(end=-(1 << 59)),
    "a repetition of nothing": with_system("hopaas:again", "9" * 5000),
    "constraints 'abc'": with_system("constraints", '"abc"'),
    "constraints 7": with_system("constraints", "7"),
    "constraints [[1]]": with_system("constraints", "[[1]]"),
    "constraints ['a']": with_system("constraints", '["a"]'),
    "constraints [1, 'a', null]": with_system("constraints", '[1,"a",null]'),
    "constraints NaN": with_system("constraints", "[NaN]"),
    "a constraint of 400 digits": with_system("constraints", "[" + "9" * 400 + "]"),
    "a constraint by name of 400 digits": with_system("constraints:c", "-" + "9" * 400),
    "a rung of 400 digits": TrialSet(8, 1, system={"completed_rung_0": "9" * 400}),
    "a constraint by name": with_system("constraints:c", '"abc"'),
    "no JSON as constraints": with_system("constraints", "abc"),
    "fixed_params null": TrialCreate(WAITING, system={"fixed_params": "null"}),
    "fixed_params NaN": TrialCreate(WAITING, system={"fixed_params": "NaN"}),
    "fixed_params [1]": TrialCreate(WAITING, system={"fixed_params": "[1]"}),
    "fixed_params 7": TrialCreate(WAITING, system={"fixed_params": "7"}),
    "fixed_params 'x'": TrialCreate(WAITING, system={"fixed_params": '"x"'}),
    "a rung that is text": with_system("completed_rung_0", '"abc"'),
    "a generation that is text": with_system("NSGAIISampler:generation", '"abc"'),
    "a generation of 10^18": with_system("NSGAIISampler:generation", "1" + "0" * 18),
    "a grid without a number": with_system("grid_id", "[]"),
    "a search space that is none": with_system("search_space", "7"),
    "an origin that is none": with_system("hopaas:copied_from", "7"),
    "an origin that is no JSON": with_system("hopaas:copied_from", "nonsense"),
    "metric names {}": StudySet(system={"study:metric_names": "{}"}),
    "parents that are none": StudySet(system={"NSGAIISampler:parent:1": "7"}),
    "a budget of 2^64 - 1": StudyControl(budget=(1 << 64) - 1),
    "JSON nested 900 deep": ended(user={"deep": DEEP}),
    "JSON nested 900 deep, of the study": StudySet(user={"deep": '{"a":' * 900 + "1" + "}" * 900}),
    "another kind, imported": with_dist("opt", 3.0, Int(1, 5)),
    "another log flag, imported": with_dist("lr", 0.0, Float(0, 1)),
    "other choices, imported": with_dist("opt", 0.0, Categorical(("tiger", "adam"))),
    "a lone surrogate": ended(user={"half": '"\\ud800"', "halves": '["\\udfff"]'}),
    "a lone surrogate as the study's": StudySet(user={"half": '"\\ud800"'}, system={"half": '{"\\ud800":1}'}),
    "half a surrogate pair in tags": StudySet(system={"hopaas:tags": '["\\ud800"]', "hopaas:3:tags": '["\\udfff"]'}),
    "half a surrogate pair in notes": StudySet(
        system={"dashboard:note_str:0": '"\\ud800"', "dashboard:3:note_str:0": '"\\ud800"'}
    ),
    "half a surrogate pair as a metric's name": StudySet(system={"study:metric_names": '["\\ud800"]'}),
    "half a surrogate pair in what is nobody's": StudySet(system={"dashboard:form_widgets:v2": '["\\ud800"]'}),
    "half of an escaped pair": ended(user={"half": '"\\\\\\ud800"'}),
    "a name of 513 characters": ended(user={"x" * 513: "1"}),
    "a zero in a name": ended(user={"a\0": "1"}),
    "a zero in a parameter's name": with_dist("a\0", 0.5, Float(0, 1)),
    "a choice of 2^64 - 1": with_dist("new", 0.0, Categorical(((1 << 64) - 1,))),
    "an int up to 2^64 - 1": with_dist("new", 0.0, Int(0, (1 << 64) - 1)),
    "a pruned value that is no number": ended(state=TrialState.PRUNED, values=(NAN,)),
    "a failed value that is no number": ended(state=FAIL, values=(NAN,)),
    "an origin with 1e400": with_system("hopaas:copied_from", '{"earlier":1e400}'),
    "an origin of a list": with_system("hopaas:copied_from", '{"site":[]}'),
    "an origin that is no trial": with_system("hopaas:copied_from", '{"trial":-1}'),
    "an origin in a study, without its trial": with_system("hopaas:copied_from", '{"study":"u"}'),
    "an origin of more": with_system("hopaas:copied_from", '{"x":1}'),
    "what an export says": with_system("hopaas:rest", "7"),
    "no names of metrics": StudySet(system={"study:metric_names": "[]"}),
    "two names of metrics": StudySet(system={"study:metric_names": '["a","b"]'}),
    "a space that is none": StudySet(system={"hopaas:space": '{"x":["f",1,0]}'}),
    "a checksum that is none": StudySet(system={"hopaas:artifact:01234567": "7"}),
    "a size of 401 digits": StudySet(system={"hopaas:artifact:01234567": f'{{"size":1{"0" * 400},"sha256":""}}'}),
    "a generation of CMA-ES that is none": with_system("hopaas:cmaes", '{"generation":-1,"parents":[]}'),
    "a copy of no trial": with_system("hopaas:copies", "-1"),
    "a late result of no trial": with_system("late_of", '"x"'),
}
HARMLESS: Final[dict[str, Any]] = {
    "an int that doubles cannot tell": with_dist("new", 2.0**62, Int(0, (1 << 63) - 1)),
    "a single value at the end of doubles": with_dist("new", 1.7e308, Float(1.7e308, 1.7e308)),
    "another range": with_dist("lr", 0.5, Float(1e-5, 1.0, log=True)),
    "a float above its range": with_param("lr", 0.5),
    "a float below its range": with_param("lr", 1e-9),
    "an int above its range": with_param("units", 4096.0),
    "half an int": with_param("units", 16.5),
    "half a choice": with_param("opt", 0.5),
    "values inf": ended(values=(INF,)),
    "values -inf": ended(values=(-INF,)),
    "a value of 1e308": ended(values=(1e308,)),
    "reports of all kinds": ended(reports={-(1 << 63): NAN, 0: INF, (1 << 63) - 1: -1e308}),
    "constraints null": with_system("constraints", "null"),
    "constraints of one": with_system("constraints", "[1.0]"),
    "constraints of two": with_system("constraints", "[-1.0, 2]"),
    "a grid without a space": with_system("grid_id", "1"),
    "fixed_params of text": TrialCreate(WAITING, system={"fixed_params": '{"lr":"abc"}'}),
    "fixed_params of lists": TrialCreate(WAITING, system={"fixed_params": '{"opt":[1],"units":{}}'}),
    "fixed_params NaN within": TrialCreate(WAITING, system={"fixed_params": '{"lr":NaN}'}),
    "fixed_params far away": TrialCreate(WAITING, system={"fixed_params": '{"lr":1e308}'}),
    "fixed_params of 400 digits": TrialCreate(WAITING, system={"fixed_params": f'{{"units":1{"0" * 400}}}'}),
    "attributes that are no JSON": ended(user={"a": "nonsense", "": ""}, system={"b": "{"}),
    "a number of 5,000 digits": ended(user={"a": "9" * 5000}),
    "a number of 4,000 digits": ended(user={"a": "9" * 4000, "b": "1e999"}),
    "control characters": ended(user={"\x1b[2J\u202e": '"\x1b]0;x\x07\u009b31m\u202e"'}, reason="\x1b[2J\r\u202e"),
    "a time in the year 2200": ended(start=(1 << 53) - 1, end=1 - (1 << 53)),
    "a time before all clocks": ended(start=1 - (1 << 53), end=(1 << 53) - 1),
    "an introduction of nonsense": PeerJoin({"ttl": "nan", "site": "\x1b[2J\u202e", "host": "", "pid": "-"}),
    "a checkpoint of nonsense": TrialCheckpoint(8, 1, Checkpoint((1 << 63) - 1, "../../etc/passwd", -1, "")),
    "tags and notes of nonsense": StudySet(
        system={
            "hopaas:²:tags": "[1]",
            "hopaas:" + "9" * 400 + ":tags": "[1]",
            "dashboard:" + "9" * 400 + ":note_str:0": '"x"',
            "dashboard:note_str:0": "7",
            "dashboard:note_ver": '"x"',
            "hopaas:tags": "7",
        }
    ),
    "a file that nobody stored": StudySet(
        system={"artifacts:0123456789abcdef": json.dumps(json.dumps({"artifact_id": "0123456789abcdef"}))}
    ),
    "a metric without steps": TrialSet(8, 1, metrics={"auc": {}}),
    "alerts of nonsense": StudySet(system={"hopaas:alert:seat": "7", "artifacts:x": "7"}),
}


def healthy() -> Scribe:
    """A study of some trials, and one that mallory runs: number 8."""
    scribe = Scribe()
    scribe.join("good", "north")
    for at in range(8):
        number = scribe.trial(
            "good", at / 8, reports=(1.0, 0.5), lr=10.0 ** -(1 + at / 2), units=8.0 * (1 + at), opt=at % 3
        )
        assert number == at
    scribe.start("mallory", **GOOD)
    return scribe


def said(scribe: Scribe, *records: Any) -> bool:
    """Let mallory write these, as bytes; whether the last was accepted."""
    scribe.state.status, scribe.state.budget = "running", None
    sent = Commit("mallory", 1000 + len(scribe.commits), "mallory", 1_700_000_100_000_000, records)
    arrived = codec.decode(codec.encode(sent))
    assert isinstance(arrived, Commit)
    scribe.commits.append(arrived)
    verdicts = apply(scribe.state, scribe.state.lsn + 1, arrived, Stamp(role="owner"))
    return verdicts[-1].accepted


def read_everything(state: State) -> None:
    """Every reader that needs no store."""
    assert snapshot.digest(snapshot.load(snapshot.dump(state))) == snapshot.digest(state)
    assert render(state, name="study", store="store", now=NOW).encode()
    assert "".join(tables.dump_csv(of_state(state))).encode()
    look_at_pages(Frame(Listing(0, "u" * 32, "study"), state))


def look_at_pages(frame: Frame) -> None:
    """What the pages of the dashboard draw."""
    state, columns, now = frame.state, frame.columns, NOW.timestamp()
    studies.card(state, columns, dict.fromkeys(owners_of(state), UNKNOWN))
    studies.first_line(notes.read_note(frame.system, None))
    studies.summary(state, columns)
    for along in ("number", "time", "compute"):
        charts.history(columns, along=along)  # type: ignore[arg-type]
    studies.best_so_far([("study", columns)])
    failures.cells(failures.failures(state), str)
    live.pace(state, columns, now)
    live.running(state)
    live.events(state, columns)
    lines = table.note_lines(frame.system, 0)
    charts.importance(importance(state, columns))
    for name in columns.parameters:
        charts.slice_(columns, name)
    charts.parallel(columns, *columns.parameters)
    peer_rows(state, now, {})
    timeline(state, now)
    savings(state, columns)
    charts.curves(state, columns)
    charts.pareto(columns)
    shown = np.ones(len(columns), dtype=np.bool_)
    table.table(state, columns, shown, tags=notes.tags_by_trial(frame.system), lines=lines)
    table.matching(state, columns, "x", {})
    trial.side_by_side(state, columns, range(min(5, len(columns))))
    for one in state.trials:
        trial.rank(columns, one.number)
        charts.curve(state, columns, one.number)
        trial.leases(one)
    metrics.exposition([])


class RecordingTracker:
    """Takes all that a tracker is sent, and turns it into the texts and numbers that a client of one sends."""

    name, place = "recording", "here"

    def __init__(self) -> None:
        self.sent = 0

    def begin(self, study: RunView) -> dict[int | None, str]:
        return {}

    def put(self, view: RunView, files: StudyArtifacts) -> bool:
        self.sent += 1
        assert view.mark
        assert all(isinstance(step, int) for by_step in view.series.values() for step in by_step)
        [float(value) for by_step in (*view.series.values(), view.values) for value in by_step.values()]
        for key, text in {**view.tags, "note": view.note}.items():
            assert isinstance(key, str) and isinstance(text, str), (key, text)
            f"{key}{text}".encode()  # a lone surrogate has no bytes
        for key, value in view.params.items():
            f"{key}{value}".encode()
        assert list(new_files(view, [], files)) == []  # nobody has stored one
        return True

    def link(self) -> str:
        return "here"

    def close(self) -> None:
        """Nothing is open."""


def use(storage: Storage, samplers: tuple[str, ...]) -> None:
    """Optuna on the study: what it reads, and one trial with each of these samplers; and an export to a tracker."""
    tracker = RecordingTracker()
    with_trackers = open_study(storage, "study")
    Export(with_trackers, tracker).sync()
    assert tracker.sent == 1 + len(with_trackers.state.trials)
    links(storage.get_study_system_attrs(with_trackers.study_id))
    study = optuna.load_study(study_name="study", storage=storage)
    copy.deepcopy(study.trials)
    study.metric_names  # noqa: B018
    study.best_trial  # noqa: B018
    for name in samplers:
        ours = open_study(storage, "study", sampler=SAMPLERS[name](), pruner=optuna.pruners.SuccessiveHalvingPruner())
        try:
            asked = ours.ask()
        except NoWork:
            continue
        for step in range(2):
            asked.report(0.5, step)
            asked.should_prune()
        ours.tell(asked, 0.5)
        ours.trials_dataframe()


@pytest.mark.parametrize("record", REFUSED.values(), ids=REFUSED)
def test_what_would_harm_readers_is_refused_counted_and_kept(record: Any) -> None:
    scribe = healthy()
    before = snapshot.digest(scribe.state)

    assert not said(scribe, record)

    assert scribe.state.refusals == {"malformed": 1}
    scribe.state.refusals, scribe.state.lsn = {}, scribe.state.lsn - 1
    scribe.state.writers.pop("mallory")
    clean = healthy().state
    clean.writers.pop("mallory")
    assert before and snapshot.digest(scribe.state) == snapshot.digest(clean)


@pytest.mark.parametrize("record", HARMLESS.values(), ids=HARMLESS)
def test_what_is_accepted_harms_no_reader(record: Any, tmp_path: Path) -> None:
    scribe = healthy()
    assert said(scribe, record)

    read_everything(scribe.state)
    scribe.put_into(str(tmp_path))
    storage = open_storage(str(tmp_path))
    use(storage, QUICK)
    storage.close()


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store whose study holds every record of both lists."""
    url = str(tmp_path_factory.mktemp("poisoned"))
    scribe = healthy()
    for record in (*HARMLESS.values(), *REFUSED.values()):
        said(scribe, record)
    scribe.say("mallory", StudyControl(budget=-1))
    read_everything(scribe.state)
    scribe.put_into(url)
    yield url
    dashboard_pages.close_all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_goes_on_where_all_of_it_was_written(poisoned: str, name: str) -> None:
    need(name)
    storage = open_storage(poisoned)
    use(storage, (name,))
    storage.close()


@pytest.mark.parametrize(
    "line",
    [
        "study list",
        "study show study",
        "study show study --json",
        "study report study --to {out}",
        "trial list --study study",
        "trial list --study study --json",
        "trial show 8 --study study",
        "trial show 9 --study study --json",
        "peers list --study study",
        "doctor",
    ],
)
def test_every_verb_of_the_command_line_goes_on(poisoned: str, line: str, tmp_path: Path) -> None:
    words = line.replace("{out}", str(tmp_path / "report.html")).split()
    result = CliRunner().invoke(cli, [*words, "--store", poisoned], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert not {"\x1b", "\u202e", "\u009b"} & set(result.output)


@pytest.mark.parametrize(
    "address", [*(entry.path for entry in PAGES), "trials?view=Failures", "trial?trial=0, 1", "studies?show=Compare"]
)
def test_every_page_of_the_dashboard_goes_on(poisoned: str, address: str) -> None:
    name, _, query = address.partition("?")
    asked = dict([query.split("=")]) if query else {}
    dashboard_pages.calm(dashboard_pages.page(name, poisoned, "study", query=asked))


def test_a_queued_trial_that_optuna_refuses_fails_and_the_next_is_run(tmp_path: Path) -> None:
    study = open_study(str(tmp_path), "s", space=SPACE)
    for fixed in ('{"lr":"abc"}', '{"opt":[1]}', '{"lr":0.05}'):
        study.handle.say(TrialCreate(WAITING, system={"fixed_params": fixed}))
    asked = study.ask()
    assert (asked.number, asked.params["lr"]) == (2, 0.05)
    failed = study.state.trials[:2]
    assert [one.state for one in failed] == [FAIL, FAIL]
    assert [one.reason for one in failed] == [
        "lr = 'abc' is not in float(1e-05,0.1,log)",
        "opt = '[1]' is not in cat(adam,sgd,lion)",
    ]
    study.close()


def test_a_sampler_of_optunas_that_raises_on_the_study_samples_one_by_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    need("GP")
    study = open_study(str(tmp_path), "s", space=SPACE, sampler=SAMPLERS["GP"]())
    for constraints in ("[1]", "[1,2]", "[1]"):
        study.handle.say(with_system("constraints", constraints))
    assert study.ask().params.keys() == SPACE.keys()
    assert "must be the same for all trials" in caplog.text
    study.close()


# --- records beyond the lists ---

_FLOATS: Final = st.floats() | st.sampled_from([0.0, 1.0, 0.5, 16.0, 0.01, -1.0, 99.0, 2.0**53, 1e300, 5e-324])
_INTS: Final = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-3, 20)
_NAMES: Final = st.sampled_from(["lr", "units", "opt", "new", "other", "", "\x1b[2J", "trial"])
_VALUES: Final = st.none() | st.booleans() | _INTS | _FLOATS | st.text(max_size=5)
_JSON: Final = st.one_of(
    st.recursive(_VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3)).map(
        json.dumps
    ),
    st.sampled_from(
        ["", "nonsense", "{", "NaN", "1e999", "[" * 900, DEEP, "9" * 5000, '"\\ud800"', '"\\udfff\\u202e"']
    ),
)
_KEYS: Final = st.sampled_from(
    [
        *("constraints", "constraints:c", "fixed_params", "completed_rung_0", "completed_rung_1", "grid_id"),
        *("search_space", "NSGAIISampler:generation", "NSGAIIISampler:generation", "failed_trial", "retry_history"),
        *("hopaas:copied_from", "hopaas:again", "hopaas:tags", "hopaas:3:tags", "hopaas:late_values"),
        *("hopaas:tag:x", "hopaas:3:tag:x"),
        *(
            "study:metric_names",
            "NSGAIISampler:parent:1",
            "dashboard:note_str:0",
            "dashboard:note_ver",
            "tpe:relative_params:0",
        ),
        *("gp:relative_params:0", "artifacts:01234567", "dashboard:3:note_str:0", "x", ""),
    ]
)
_WAYS: Final = st.sampled_from(
    [
        *(
            "hopaas:copies",
            "hopaas:resumed",
            "hopaas:continues",
            "hopaas:replicate",
            "hopaas:reused",
            "hopaas:fidelity",
        ),
        *("hopaas:sampler", "hopaas:pruner", "hopaas:repeats", "hopaas:replicates", "hopaas:pruned"),
    ]
)
_ATTRIBUTES: Final = st.dictionaries(_KEYS | _WAYS, _JSON, max_size=3)
_DISTRIBUTIONS: Final = st.one_of(
    st.builds(Float, _FLOATS, _FLOATS, st.booleans(), st.none() | _FLOATS),
    st.builds(Int, _INTS, _INTS, st.booleans(), _INTS),
    st.builds(Categorical, st.lists(_VALUES, max_size=4).map(tuple)),
    st.sampled_from([*SPACE.values(), Float(0, 1), Int(0, 1 << 40), Float(-1e300, 1e300), Float(0, 1, step=0.25)]),
)
_CONTENT: Final = {
    "params": st.dictionaries(_NAMES, _FLOATS, max_size=4) | st.just(GOOD),
    "dists": st.dictionaries(_NAMES, _DISTRIBUTIONS, max_size=2),
    "reports": st.dictionaries(_INTS, _FLOATS, max_size=3),
    "user": _ATTRIBUTES,
    "system": _ATTRIBUTES,
    "metrics": st.dictionaries(
        st.sampled_from(["loss", "auc", "", "\x1b[2J", "<b>", "x" * 101]),
        st.dictionaries(_INTS, _FLOATS, max_size=3),
        max_size=2,
    ),
}
_USED: Final = st.none() | st.builds(Used, _INTS, st.none() | _INTS)
_AMOUNTS: Final = st.none() | _FLOATS
_PRICES: Final = st.dictionaries(
    st.sampled_from(["north", "*", ""]), st.builds(Price, _FLOATS, _FLOATS, _FLOATS), max_size=2
)
_UNTIL: Final = st.builds(Until, _AMOUNTS, st.none() | _INTS | st.text(max_size=5), st.none() | _INTS, _AMOUNTS)
_LIMITS: Final = st.builds(
    Budget, st.none() | _INTS, st.none() | _INTS, _AMOUNTS, _AMOUNTS, _AMOUNTS, _AMOUNTS, _PRICES, st.none() | _UNTIL
)
_STATES: Final = st.sampled_from(TrialState)
_RESULTS: Final = st.none() | st.lists(_FLOATS, max_size=2).map(tuple) | st.just((0.5,))
_TEXTS: Final = st.none() | st.text(max_size=6)
_NUMBERS: Final = st.integers(0, 12)
_EPOCHS: Final = st.integers(0, 3)
_TIMES: Final = st.none() | _INTS | st.integers(-(1 << 53), 1 << 53)
_ABOUT_PEERS: Final = ["site", "host", "pid", "ttl", "user", "gpus", "cores", "watts", "earlier", "on_behalf_of"]
RECORDS: Final = st.one_of(
    st.builds(
        TrialCreate,
        _STATES,
        st.booleans(),
        values=_RESULTS,
        reason=_TEXTS,
        start=_TIMES,
        end=_TIMES,
        skip=st.lists(_INTS, max_size=3).map(tuple),
        replicates=st.integers(-1, 3) | _INTS,
        **_CONTENT,
    ),
    st.builds(TrialSet, st.just(8), st.just(1), used=_USED, **_CONTENT),
    st.builds(
        TrialSet, _NUMBERS, _EPOCHS, stopping=st.booleans(), resumed_from=st.none() | _INTS, used=_USED, **_CONTENT
    ),
    st.builds(TrialFinish, _NUMBERS, _EPOCHS, _STATES, _RESULTS, _TEXTS, st.booleans(), _USED),
    st.builds(StudySet, _ATTRIBUTES, _ATTRIBUTES),
    st.builds(StudyControl, st.none() | st.just("running"), st.none() | st.integers(-1, (1 << 64) - 1)),
    st.builds(StudyControl, st.none() | st.just("running"), st.none(), _LIMITS),
    st.builds(PeerJoin, st.dictionaries(st.sampled_from(_ABOUT_PEERS), st.text(max_size=5) | _FLOATS.map(str))),
    st.builds(PeerDrain, _TEXTS, _TEXTS, st.booleans()),
    st.builds(TrialCheckpoint, st.just(8), st.just(1), st.builds(Checkpoint, _INTS, st.text(), _INTS, st.text())),
    st.builds(TrialClaim, _NUMBERS),
    st.builds(TrialRelease, _NUMBERS, _EPOCHS, st.booleans(), _TEXTS, _USED),
    st.builds(TrialReclaim, _NUMBERS, _EPOCHS, st.text(max_size=5), st.none() | _INTS),
    st.builds(TrialTakeOver, _NUMBERS, _EPOCHS, _STATES, _RESULTS, st.none(), st.text(max_size=5)),
    st.builds(TrialStop, _NUMBERS, _EPOCHS, _TEXTS),
)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(RECORDS, min_size=1, max_size=12), st.sampled_from(QUICK))
def test_no_records_stop_a_reader_or_a_sampler(records: list[Any], name: str) -> None:
    scribe = healthy()
    for record in records:
        said(scribe, record)
    read_everything(scribe.state)

    url = f"memory://{secrets.token_hex(8)}"
    storage = open_storage(url)
    storage.define_study(StudyDefine("study", ("minimize",), space=SPACE))
    log = storage.handle(0).log
    for commit in scribe.commits[1:]:
        storage.peer.commit(log, *commit.records, owner=commit.owner)
    storage.peer.commit(log, StudyControl("running", -1, Budget()))  # an owner's own limits may end it
    use(storage, (name, "partial"))
    storage.close()


def limited() -> Scribe:
    """A study with limits of every kind, and a trial that mallory runs."""
    limits = Budget(
        None, 1 << 30, 1e6, 1e6, 1e6, 1e6, {"north": Price(1.0, 1.0, 1.0)}, Until(-1e9, 1 << 58, 1 << 30, 1e6)
    )
    scribe = Scribe(policy=Policy(limits=limits))
    scribe.join("good", "north")
    for at in range(8):
        scribe.trial("good", at / 8, reports=(1.0, 0.5), lr=10.0 ** -(1 + at / 2), units=8.0 * (1 + at), opt=at % 3)
    scribe.start("mallory", **GOOD)
    return scribe


@pytest.mark.parametrize("begun", [limited, with_rungs, with_population])
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(records=st.lists(RECORDS, min_size=1, max_size=12))
def test_no_records_stop_a_reader_of_limits_rungs_or_populations(
    begun: Callable[[], Scribe], records: list[Any]
) -> None:
    scribe = begun()
    for record in records:
        said(scribe, record)
    read_everything(scribe.state)
    configurations.rows(scribe.state)
    spending(scribe.state)
    for one in scribe.state.trials:
        charts.metrics(one)


@pytest.mark.parametrize(
    "space",
    [
        {"x": Categorical(("a", "b"))},
        {"x": Float(0.1, 1, log=True)},
        {f"y{place}": Float(0, 1) for place in range(1000)},
    ],
    ids=["kind", "scale", "names"],
)
@pytest.mark.parametrize("first", ["space", "trials"])
def test_a_space_that_fits_no_trial_stops_nobody(space: dict[str, Any], first: str) -> None:
    """What somebody says of the space later, in a study that was created with none."""
    url = f"memory://{secrets.token_hex(8)}"
    with contextlib.closing(open_study(url, "s")) as study:
        lies = StudySet(system={LATER_SPACE: as_attribute(space)})
        if first == "space":
            study.handle.say(lies)
            study.handle.say(ended(params={"x": 0.5}, dists={"x": Float(0, 1)}, values=(1.0,)))
        else:
            study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
            study.handle.say(lies)
            with pytest.raises(InvalidInput, match="of another kind, or too many"):
                study.set_space(space)
    with contextlib.closing(open_study(url, "s", create=False)) as study:
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
        assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3


def test_a_prior_takes_no_longer_to_make_than_it_may_be_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """`learn_from="auto"` reads studies of others, and a fit costs as many values as there are, many times."""
    dists: dict[str, Distribution] = {f"p{place}": Float(0, 1) for place in range(1000)}
    values, fitted = 0, priors.fit

    def fit(squares: Any, *given: Any, **named: Any) -> Any:
        nonlocal values
        values += squares.size
        return fitted(squares, *given, **named)

    monkeypatch.setattr(priors, "fit", fit)
    with contextlib.closing(open_study(f"memory://{secrets.token_hex(8)}", "s")) as study:
        for number in range(20):
            drawn = {name: (number * 37 + place * 11) % 97 / 97 for place, name in enumerate(dists)}
            study.handle.say(ended(params=drawn, dists={} if number else dists, values=(float(number),)))
        with pytest.raises(InvalidInput, match="too many parameters"):
            priors.Prior.from_study(study)
    assert values < 1_000_000
    large = {name: [0.5] * 200 for name in dists}
    told = priors.PriorRecord("s", dists, large, [0.0] * 200, [1.0] * len(dists), 1.0)
    assert not possible_priors([msgspec.to_builtins(told)])


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 5e-324), (5e-324, 1e-323), (5e-324, 1.0), (1e-151, 2e-151), (-5e-324, 5e-324), (1e16, 1e16 + 2)],
)
def test_an_axis_of_next_to_nothing_is_drawn(low: float, high: float, log: bool) -> None:
    if log and low <= 0:
        low = 1e-323
        high = max(high, low)
    dist = Float(low, high, log=log)
    scribe = Scribe(space={"x": dist})
    for number in range(12):
        end = high if number % 2 else low
        scribe.say("a", ended(params={"x": end}, dists={"x": dist}, values=(end,), reports={0: low, 1: end}))
    assert scribe.state.counts[COMPLETE] == 12
    read_everything(scribe.state)
