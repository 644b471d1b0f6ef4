"""Export and import: nothing that a study holds is lost on the way, in any direction."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from pprint import pformat
from typing import Any

import msgspec
import optuna
import pytest
from msgspec.structs import replace

import hopaas_p2p
from hopaas_p2p import notes
from hopaas_p2p.core.attributes import COPIED
from hopaas_p2p.core.records import Categorical, Distribution, Float, Int, TrialCreate, TrialReclaim, TrialState
from hopaas_p2p.errors import DefinitionMismatch, InvalidInput, NoSuchStudy, StudyExists
from hopaas_p2p.files.artifacts import Artifact
from hopaas_p2p.moving import export_study, import_study, tables
from hopaas_p2p.moving.records import of_study, origin
from hopaas_p2p.storage import Storage
from hopaas_p2p.study import Study
from hopaas_p2p.study.trial import Trial
from hopaas_p2p.trackers.view import RunView, look
from tests.support.dashboard_studies import Scribe
from tests.support.processes import cli

SPACE = {
    "lr": hopaas_p2p.Float(1e-5, 1e-1, log=True),
    "grid": hopaas_p2p.Float(0.0, 1.0, step=0.25),
    "depth": hopaas_p2p.Int(1, 9, step=2),
    "kind": hopaas_p2p.Categorical(("adam", "1", 1, True, None, 0.5, math.inf)),
}


@pytest.fixture
def storages(tmp_path: Path) -> Iterator[Any]:
    """Opens new stores, and closes them."""
    opened: list[Storage] = []

    def open_one(name: str) -> Storage:
        opened.append(hopaas_p2p.open_storage(str(tmp_path / name)))
        return opened[-1]

    yield open_one
    for storage in opened:
        storage.close()


@pytest.fixture
def study(storages: Any) -> Study:
    """A study with something of everything."""
    storage = storages("from")
    hopaas_p2p.open_study(storage, "first").stop_all()  # so that study and trial ids differ from the copy's
    study = hopaas_p2p.open_study(
        storage,
        "everything",
        space=SPACE,
        directions="maximize",
        budget=30,
        policy=hopaas_p2p.StudyPolicy(max_failures=9),
    )

    def objective(trial: Trial) -> float:
        trial.set_user_attr("plain", {"a": [1, 2.5, None, "ü"]})
        trial.set_user_attr("odd", [math.nan, math.inf])
        trial.set_user_attr("escape", {"$json": "x"})
        trial.set_user_attr("formula", "=1+1")
        for step, value in enumerate([1.0, math.nan, -math.inf, 0.1 + 0.2]):
            trial.report(value, step)
            trial.log(step, loss=value, **({"val/auc": 0.5} if step == 2 else {}))
        if trial.number == 1:
            raise optuna.TrialPruned
        if trial.number == 2:
            raise ValueError("two\nlines")
        return math.inf if trial.number == 3 else trial.params["lr"]

    study.optimize(objective, n_trials=8, catch=ValueError)
    lost = study.ask()
    study.handle.say(TrialReclaim(lost.number, study.state.trials[lost.number].epoch))
    with pytest.raises(hopaas_p2p.errors.LeaseLost):
        study.tell(lost, 4.0)
    study.set_user_attr("why", ["a", {"b": math.nan}])
    study.enqueue_trial({"lr": 0.01})
    notes.save_note(study, "# A study\n\n" + "long " * 1000)
    notes.save_note(study, "a trial", 1)
    notes.change_tags(study, add=["gpu"])
    notes.change_tags(study, 2, add=["odd one"])
    study.pause()
    return study


def said(study: Study) -> str:
    """All that there is to say of a study, and not of which study it is."""
    whole = of_study(study)
    trials = {}
    for number, record in whole.trials.items():
        about = {key: one for key, one in origin(record).items() if key not in ("study", "trial")}
        trials[number] = replace(record, system={**record.system, COPIED: json.dumps(about, sort_keys=True)})
    return pformat(msgspec.to_builtins(whole._replace(trials=trials, uuid=""), str_keys=False))


def copy_in(storages: Any, source: str | Path, *, into: str = "to", **options: Any) -> Study:
    storage = storages(into)
    hopaas_p2p.open_study(storage, "another")
    hopaas_p2p.open_study(storage, "and another")
    result = import_study(storage, source, **options)
    assert result.warnings == []
    return hopaas_p2p.open_study(storage, result.study)


@pytest.mark.parametrize("target", ["x.study", "x.journal", "sqlite"])
def test_a_round_trip_loses_nothing(study: Study, storages: Any, tmp_path: Path, target: str) -> None:
    if target == "x.parquet":
        pytest.importorskip("pyarrow")
    place = f"sqlite:///{tmp_path / 'x.db'}" if target == "sqlite" else str(tmp_path / target)
    assert export_study(study, place) == len(study.trials)
    copied = copy_in(storages, place)
    assert said(copied) == said(study)
    assert notes.note_of(copied, 1) == "a trial"
    assert notes.tags_of(copied, 2) == ["odd one"]
    assert copied.state.status == "paused"
    assert copied.state.budget == 30
    for ours, theirs in zip(study.trials, copied.trials, strict=True):
        assert repr(ours.params) == repr(theirs.params)
        assert ours.distributions == theirs.distributions
        assert repr(ours.intermediate_values) == repr(theirs.intermediate_values)
        assert repr(copied.state.trials[theirs.number].metrics) == repr(study.state.trials[ours.number].metrics)
        assert (ours.state, ours.values) == (theirs.state, theirs.values)
        assert (ours.datetime_start, ours.datetime_complete) == (theirs.datetime_start, theirs.datetime_complete)
        assert repr(sorted(ours.user_attrs.items())) == repr(sorted(theirs.user_attrs.items()))


def test_optuna_reads_what_was_exported_to_it(study: Study, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    export_study(study, url)
    storage = optuna.storages.RDBStorage(url)
    theirs = optuna.load_study(study_name="everything", storage=storage)
    assert theirs.direction.name == "MAXIMIZE"
    assert theirs.best_value == study.best_trial.value
    assert [trial.state for trial in theirs.trials] == [trial.state for trial in study.trials]
    assert repr(theirs.user_attrs) == repr(study.user_attrs)
    from optuna_dashboard import get_note

    assert get_note(theirs).startswith("# A study")
    storage.engine.dispose()
    with pytest.raises(StudyExists):
        export_study(study, url)


def test_a_study_of_optunas_own_arrives_whole(storages: Any, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'own.db'}"
    storage = optuna.storages.RDBStorage(url)
    theirs = optuna.create_study(study_name="theirs", storage=storage, directions=["minimize", "maximize"])
    theirs.set_metric_names(["loss", "accuracy"])
    theirs.enqueue_trial({"x": 0.5, "c": "b"})
    theirs.optimize(lambda t: (t.suggest_float("x", 0, 1), len(t.suggest_categorical("c", ["a", "b"]))), n_trials=3)
    theirs.ask().suggest_float("x", 0, 1)
    from optuna_dashboard import save_note

    save_note(theirs, "theirs")
    copied = copy_in(storages, url)
    assert copied.name == "theirs"
    assert [one.name for one in copied.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert copied.metric_names == ["loss", "accuracy"]
    assert notes.note_of(copied) == "theirs"
    states = [trial.state.name for trial in copied.trials]
    assert states == ["COMPLETE", "COMPLETE", "COMPLETE", "WAITING"]  # nobody here runs the last one
    for ours, trial in zip(copied.trials[:3], theirs.trials, strict=False):
        assert (ours.params, ours.values, ours.distributions) == (trial.params, trial.values, trial.distributions)
        assert (ours.datetime_start, ours.datetime_complete) == (trial.datetime_start, trial.datetime_complete)
        assert {key: one for key, one in ours.system_attrs.items() if key != COPIED} == trial.system_attrs
    storage.engine.dispose()


def test_a_study_among_several_has_to_be_named(storages: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "two.journal")
    journal = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path))
    for name in ("a", "b"):
        optuna.create_study(study_name=name, storage=journal)
    with pytest.raises(NoSuchStudy, match="a, b"):
        import_study(storages("x"), path)
    with pytest.raises(NoSuchStudy, match="it has: a, b"):
        import_study(storages("y"), path, source_study="c")
    assert import_study(storages("z"), path, source_study="b", name="mine").study == "mine"


@pytest.mark.parametrize("there", ["x.db", "x.journal"])
def test_an_optuna_storage_that_is_not_there_is_not_made(storages: Any, tmp_path: Path, there: str) -> None:
    place = f"sqlite:///{tmp_path / there}" if there.endswith(".db") else str(tmp_path / there)
    with pytest.raises(InvalidInput, match="no file"):
        import_study(storages("to"), place)
    assert not (tmp_path / there).exists()


def test_csv_is_for_spreadsheets(study: Study, tmp_path: Path) -> None:
    export_study(study, tmp_path / "x.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text())))
    assert [row["state"] for row in rows] == [trial.state.name for trial in study.trials]
    assert float(rows[0]["value"]) == study.trials[0].value
    assert rows[0]["user_attrs_formula"] == "'=1+1"  # a spreadsheet would run it
    assert rows[2]["reason"].startswith("ValueError: two")
    assert rows[0]["host"]


def test_csv_comes_back_as_far_as_it_says(storages: Any, tmp_path: Path) -> None:
    source = hopaas_p2p.open_study(storages("from"), "s", space={"x": hopaas_p2p.Float(-1, 1), "c": SPACE["kind"]})
    source.optimize(lambda trial: trial.params["x"], n_trials=5)
    export_study(source, tmp_path / "x.csv")
    target = hopaas_p2p.open_study(storages("to"), "s", space={"x": hopaas_p2p.Float(-1, 1), "c": SPACE["kind"]})
    import_study(target.storage, tmp_path / "x.csv", name="s")
    assert [trial.params["x"] for trial in target.trials] == [trial.params["x"] for trial in source.trials]
    assert [trial.values for trial in target.trials] == [trial.values for trial in source.trials]
    assert [trial.datetime_start for trial in target.trials] == [trial.datetime_start for trial in source.trials]
    with pytest.raises(InvalidInput, match="create new --direction"):  # by CSV alone the worst may be the best
        copy_in(storages, tmp_path / "x.csv", name="new")
    hopaas_p2p.open_study(storages("guessed"), "new", directions="maximize").close()
    guessed = copy_in(storages, tmp_path / "x.csv", into="guessed", name="new")
    assert [trial.values for trial in guessed.trials] == [trial.values for trial in source.trials]
    assert guessed.best_value == max(trial.value for trial in source.trials)


@pytest.mark.parametrize(
    ("column", "guessed"),
    [
        (["1", "3", ""], Int(1, 3)),
        (["0.5", "1"], Float(0.5, 1.0)),
        (["inf", "1", "inf", "0.5"], Categorical(("inf", "1", "0.5"))),
        (["nan", "1"], Categorical(("nan", "1"))),
        (["adam", "1"], Categorical(("adam", "1"))),
    ],
)
def test_a_csv_column_gets_the_narrowest_distribution_that_holds_it(column: list[str], guessed: Distribution) -> None:
    lines = ["state,value,params_x", *(f"COMPLETE,1.0,{text}" for text in column)]
    loaded = tables.load_csv(lines, space={}, name=None)
    assert loaded.trials[0].dists == {"x": guessed}


def test_optunas_own_data_frame_as_csv_can_be_read(storages: Any, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    theirs = optuna.create_study()
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1) + trial.suggest_int("n", 1, 3), n_trials=4)
    theirs.trials_dataframe().to_csv(tmp_path / "df.csv", index=False)
    hopaas_p2p.open_study(storages("to"), "df").close()
    copied = copy_in(storages, tmp_path / "df.csv", name="df")
    assert [trial.params for trial in copied.trials] == [trial.params for trial in theirs.trials]
    assert copied.best_trial.value == theirs.best_value


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "no column 'state'"),
        ("a,b\n1,2\n", "no column 'state'"),
        ("state,value,params_x\n", "this CSV has no trials"),
        ("number,state,value\n0,GREAT,1\n", "row 2: 'GREAT' is not a state"),
        ("number,state,value\n0,,1\n", "row 2: '' is not a state"),
        ("number,state,value\n0,COMPLETE,\n", "row 2: the trial is COMPLETE, but has no value"),
        ("number,state,value\n0,COMPLETE,high\n", "row 2: .* 'high'"),
        (f"number,state,value\n0,COMPLETE,{'high' * 5000}\n", "row 2: .{200}$"),
        (f"number,state,value,params_x\n0,COMPLETE,1,{'9' * 20}\n", "cannot be written to a log"),
        (f"number,state,value,params_x\n0,COMPLETE,1,{'9' * 300}\n", "trial 0 cannot be written to a log"),
        ("number,state,value,datetime_start\n0,COMPLETE,1,0001-01-01T00:00+23:59\n", "row 2: .* outside the calendar"),
        ('number,state,value,user_attrs_a\n0,COMPLETE,1,"""\\ud800"""\n', "trial 0 cannot be written to a log"),
    ],
)
def test_a_csv_that_makes_no_sense_is_refused(storages: Any, tmp_path: Path, content: str, why: str) -> None:
    (tmp_path / "x.csv").write_text(content)
    target = hopaas_p2p.open_study(storages("to"), "s")
    with pytest.raises(InvalidInput, match=why):
        import_study(target.storage, tmp_path / "x.csv", name="s")
    assert target.trials == []


def test_a_file_whose_extension_is_of_no_format_is_not_written(study: Study, tmp_path: Path) -> None:
    for name in ("x.json", "x.db", "x.xlsx"):
        with pytest.raises(InvalidInput, match=r"names no format. Use .study, .csv"):
            export_study(study, tmp_path / name)
        assert not (tmp_path / name).exists()
    export_study(study, tmp_path / "x.json", form="csv")
    assert "COMPLETE" in (tmp_path / "x.json").read_text()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04nonsense", b"{}"])
def test_a_file_that_holds_no_study_is_refused_and_nothing_imported(
    storages: Any, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "x.study").write_bytes(content)
    storage = storages("to")
    with pytest.raises(InvalidInput):
        import_study(storage, tmp_path / "x.study", name="s")
    assert storage.get_all_studies() == []


def test_a_trial_the_log_refuses_is_a_warning_and_the_others_arrive(storages: Any, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("state,value,params_x\nCOMPLETE,1,nan\nCOMPLETE,3,2\n")
    target = hopaas_p2p.open_study(storages("to"), "s", space={"x": Float(0.0, 3.0)})
    result = import_study(target.storage, tmp_path / "x.csv", name="s")
    assert result.trials == 1
    assert result.warnings[0].startswith("trial 0 was not imported")


def test_an_import_adds_to_a_study_and_names_its_trials_anew(study: Study, storages: Any, tmp_path: Path) -> None:
    export_study(study, tmp_path / "x.study")
    target = hopaas_p2p.open_study(storages("to"), "mine", directions="maximize")
    target.optimize(lambda trial: trial.suggest_float("lr", 1e-5, 1e-1, log=True), n_trials=2)
    import_study(target.storage, tmp_path / "x.study", name="mine")
    assert len(target.trials) == 2 + len(study.trials)
    assert notes.note_of(target, 2 + 1) == "a trial"
    assert notes.tags_of(target, 2 + 2) == ["odd one"]


def test_other_directions_are_refused_before_anything_is_written(study: Study, storages: Any, tmp_path: Path) -> None:
    export_study(study, tmp_path / "x.study")
    target = hopaas_p2p.open_study(storages("to"), "mine", directions="minimize")
    with pytest.raises(DefinitionMismatch, match="maximize"):
        import_study(target.storage, tmp_path / "x.study", name="mine")
    assert target.trials == []


def test_more_than_the_budget_is_refused_before_anything_is_written(
    study: Study, storages: Any, tmp_path: Path
) -> None:
    export_study(study, tmp_path / "x.study")
    target = hopaas_p2p.open_study(storages("to"), "mine", directions="maximize", budget=3)
    with pytest.raises(InvalidInput, match="study set mine --budget"):
        import_study(target.storage, tmp_path / "x.study", name="mine")
    assert target.trials == []


def test_a_study_whose_budget_was_lowered_below_its_trials_arrives(storages: Any, tmp_path: Path) -> None:
    source = hopaas_p2p.open_study(storages("from"), "s", budget=5)
    source.optimize(lambda _: 1.0)
    source.set_budget(2)
    export_study(source, tmp_path / "x.study")
    copied = copy_in(storages, tmp_path / "x.study")
    assert len(copied.trials) == 5
    assert copied.state.budget == 2


def test_what_is_there_is_not_refused_for_a_budget_that_it_exceeds(storages: Any, tmp_path: Path) -> None:
    """Notes, tags and files that came later are still to be imported."""
    source = hopaas_p2p.open_study(storages("from"), "s", budget=5)
    source.optimize(lambda _: 1.0)
    source.set_budget(2)
    export_study(source, tmp_path / "x.study")
    copied = copy_in(storages, tmp_path / "x.study")
    notes.save_note(source, "found later")
    export_study(source, tmp_path / "again.study")
    assert import_study(copied.storage, tmp_path / "again.study").already_there == 5
    assert notes.note_of(copied) == "found later"


def test_a_file_is_there_whole_or_not_at_all(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.csv"
    target.write_text("before")

    def broken(_source: object) -> Iterator[str]:
        yield "half"
        raise OSError("disk full")

    monkeypatch.setattr(tables, "dump_csv", broken)
    with pytest.raises(OSError, match="disk full"):
        export_study(study, target)
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_place_that_is_not_there_is_named_as_it_was_said(study: Study, tmp_path: Path) -> None:
    target = tmp_path / "nowhere" / "x.csv"
    with pytest.raises(FileNotFoundError) as caught:
        export_study(study, target)
    assert caught.value.filename == str(target)


def test_without_pyarrow_parquet_says_what_to_install(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidInput, match="pip install 'pyarrow"):
        export_study(study, tmp_path / "x.parquet")


def test_a_data_frame_reads_the_parquet_file(study: Study, tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    export_study(study, tmp_path / "x.parquet")
    frame = pd.read_parquet(tmp_path / "x.parquet")
    assert frame["params_depth"].dtype.kind in "if"
    assert frame["params_lr"].dtype == float
    assert list(frame["state"]) == [trial.state.name for trial in study.trials]


def test_ten_thousand_trials_go_in_few_commits(storages: Any, tmp_path: Path) -> None:
    rows = "".join(f"{number},COMPLETE,{number}\n" for number in range(10_000))
    (tmp_path / "x.csv").write_text(f"number,state,value\n{rows}")
    storage = hopaas_p2p.open_study(storages("to"), "big").storage
    assert import_study(storage, tmp_path / "x.csv", name="big").trials == 10_000
    state = storage.state(storage.get_study_id_from_name("big"))
    assert len(state.trials) == 10_000
    assert state.lsn < 40


@pytest.mark.parametrize("named", ["old.db", "sqlite:///old.db", "./old.db"])
def test_an_import_that_does_not_say_from_what_is_refused_with_the_command(named: str, tmp_path: Path) -> None:
    done = cli("study", "import", named, "-s", "to", cwd=tmp_path, check=False)

    assert done.returncode == 2
    assert f"hopaas-p2p study import --from {named}" in done.stderr
    assert not (tmp_path / "to").exists()


def test_a_file_of_sqlite_is_an_optuna_storage(tmp_path: Path) -> None:
    database = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/old.db")
    optuna.create_study(storage=database, study_name="old").optimize(lambda trial: trial.suggest_float("x", 0, 1), 2)
    database.engine.dispose()

    done = cli("study", "import", "-s", "to", "--from", "old.db", cwd=tmp_path)

    assert "Imported 2 trials into 'old'" in done.stderr


@pytest.mark.parametrize("place", ["old.db", "old.journal"])
def test_trials_of_an_optuna_storage_are_added_once(tmp_path: Path, place: str) -> None:
    def run_theirs(file: Path, trials: int) -> None:
        with ExitStack() as stack:
            if place == "old.db":
                storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
                stack.callback(storage.engine.dispose)
            else:
                storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
            theirs = optuna.create_study(storage=storage, study_name="old", load_if_exists=True)
            theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), trials)

    target = hopaas_p2p.open_storage(tmp_path / "to")
    with closing(target):
        for there, added, before in ((2, 2, 0), (0, 0, 2), (1, 1, 2)):
            run_theirs(tmp_path / place, there)
            result = import_study(target, tmp_path / place)
            assert (result.trials, result.already_there) == (added, before)
        (tmp_path / "elsewhere").mkdir()
        run_theirs(tmp_path / "elsewhere" / place, 2)  # another study of that name
        assert import_study(target, tmp_path / "elsewhere" / place).trials == 2


@pytest.mark.parametrize("place", ["sqlite", "x.journal"])
def test_trials_that_came_by_way_of_optuna_are_added_once(
    study: Study, storages: Any, tmp_path: Path, place: str
) -> None:
    to = f"sqlite:///{tmp_path / 'x.db'}" if place == "sqlite" else str(tmp_path / place)
    export_study(study, to)
    export_study(study, tmp_path / "x.study")
    target = storages("to")
    import_study(target, to)
    assert import_study(target, to).trials == 0
    assert import_study(target, tmp_path / "x.study").trials == 0


def test_a_format_or_an_extension_that_is_not_known_is_named(study: Study, storages: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="'xml' is not a format; choose from study, csv, parquet, optuna"):
        export_study(study, tmp_path / "x.csv", form="xml")
    assert not (tmp_path / "x.csv").exists()
    export_study(study, tmp_path / "x.txt", form="csv")
    with pytest.raises(InvalidInput, match=r"x\.txt: its extension names no format\. Use \.study, \.csv"):
        import_study(storages("to"), tmp_path / "x.txt", name="s")


def test_the_command_line_exports_and_imports(study: Study, tmp_path: Path) -> None:
    source, target = str(tmp_path / "from"), str(tmp_path / "to")
    exported = cli("study", "export", "everything", "-s", source)
    assert exported.stderr == ""
    assert len(list(csv.DictReader(io.StringIO(exported.stdout)))) == len(study.trials)
    done = cli("study", "export", "everything", "-s", source, "--to", str(tmp_path / "x.study"), "--json")
    assert json.loads(done.stdout)["trials"] == len(study.trials)
    words = ("study", "import", "copy", "-s", target, "--from", str(tmp_path / "x.study"))
    assert cli(*words).stderr == f"Imported {len(study.trials)} trials into 'copy'.\n"
    twice = cli(*words)
    assert twice.stderr == f"Imported 0 trials into 'copy', which now has {len(study.trials)}.\n"
    assert twice.stdout == ""


def test_a_study_of_a_backup_is_imported_into_a_store_in_which_others_work(study: Study, tmp_path: Path) -> None:
    study.storage.flush()
    cli("admin", "backup", "from", "all.backup", cwd=tmp_path)
    unclear = cli("study", "import", "-s", "to", "--from", "all.backup", cwd=tmp_path, check=False)
    assert "holds 2 studies; choose one with --source-study: " in unclear.stderr
    words = ("study", "import", "-s", "to", "--from", "all.backup", "--source-study", "everything")
    assert f"Imported {len(study.trials)} trials" in cli(*words, cwd=tmp_path).stderr
    export_study(study, tmp_path / "x.study")
    refused = cli("admin", "restore", "x.study", "new", cwd=tmp_path, check=False)
    assert "study import --from" in refused.stderr


def test_times_and_large_numbers_are_exact(storages: Any, tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    large = (1 << 53) + 1
    space = {"n": Categorical((large, -large))}
    source = hopaas_p2p.open_study(storages("from"), "s", space=space)
    at = 1_700_000_000_123_457
    record = TrialCreate(TrialState.COMPLETE, params={"n": 0.0}, values=(0.1 + 0.2,), start=at, end=at + 1)
    source.handle.say(record)
    for name in ("x.csv", "x.parquet", "x.study"):
        export_study(source, tmp_path / name)
    (row,) = csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text()))
    assert (row["params_n"], row["datetime_start"]) == (str(large), "2023-11-14T22:13:20.123457Z")
    frame = pd.read_parquet(tmp_path / "x.parquet")
    assert frame["params_n"][0] == large
    assert frame["datetime_start"].astype("int64")[0] in (at, at * 1000)
    for name in ("x.csv", "x.study"):
        target = hopaas_p2p.open_study(storages(f"to-{name}"), "s", space=space)
        import_study(target.storage, tmp_path / name, name="s")
        (trial,) = target.state.trials
        assert (trial.params, trial.values, trial.start, trial.end) == ({"n": 0.0}, (0.1 + 0.2,), at, at + 1)


def test_a_study_does_not_say_itself_which_study_a_tracker_shows(tmp_path: Path) -> None:
    scribe = Scribe()
    (define,) = scribe.commits[0].records
    scribe.commits[0] = replace(
        scribe.commits[0], records=(replace(define, info={"study": "x' OR '", "tool": "mine"}),)
    )
    scribe.put_into(str(tmp_path))
    with closing(hopaas_p2p.open_study(str(tmp_path), "study")) as study:
        tags = look(study)[-1].tags
        assert (tags["study"], tags["tool"]) == (study.handle.uuid, "mine")


def test_a_run_has_the_mark_that_trackers_keep_from_other_versions() -> None:
    """Else a whole study is exported anew, and two versions in one study do so in turn."""
    file = Artifact("ab12", "m.pt", "x/y", None, 3, 5, None)
    run = RunView(
        number=3, name="s/3", state="COMPLETE", final=True, params={"x": 0.5}, values={"value": 1.0},
        series={"report": {0: 1.5, 1: 1.0}}, tags={"site": "north"}, note="seen", files=(file,), start=5, end=9,
    )  # fmt: skip
    assert run.mark == "4a93556d3d5727c607f5322c"
    assert len({run.mark, *(run._replace(**other).mark for other in ({"end": 8}, {"files": ()}, {"note": ""}))}) == 4


@pytest.mark.parametrize(
    "there",
    [b"garbage\n", b"\xff\xfe\n", b"[1]\n", b'{"op_code": 99, "worker_id": "x"}\n', b'{"op_code": 4, "wor', b"{}\n\0"],
)
def test_a_damaged_journal_in_the_place_of_an_export_is_one_line_and_stays(tmp_path: Path, there: bytes) -> None:
    target = tmp_path / "x.journal"
    target.write_bytes(there)
    study = hopaas_p2p.open_study(str(tmp_path / "store"), "s", space={"x": hopaas_p2p.Float(0, 1)})
    with pytest.raises(InvalidInput, match="damaged") as refused:
        export_study(study, target)
    assert len(str(refused.value).splitlines()) == 1
    assert target.read_bytes() == there
    study.close()


def test_a_sparse_journal_in_the_place_of_an_export_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "x.journal"
    target.touch()
    os.truncate(target, 5 << 30)
    study = hopaas_p2p.open_study(str(tmp_path / "store"), "s", space={"x": hopaas_p2p.Float(0, 1)})
    with pytest.raises(InvalidInput, match=r"far larger than its contents\. Remove it, or name another file"):
        export_study(study, target)
    study.close()
