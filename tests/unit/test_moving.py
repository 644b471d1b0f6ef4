"""Studies copied between stores, and files that go along with an export."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, download_artifact, get_all_artifact_meta, upload_artifact

import hopaas_p2p
from hopaas_p2p import notes
from hopaas_p2p.core.attributes import EXPORTER
from hopaas_p2p.core.records import StudySet
from hopaas_p2p.errors import ConfigurationError, InvalidInput, StoreUnreachable, StudyExists
from hopaas_p2p.moving import arrival, copy_study, export_study, files, import_study
from hopaas_p2p.moving.records import StudyRecords, of_study, origin
from hopaas_p2p.storage import Storage
from hopaas_p2p.study import Study
from hopaas_p2p.trackers.view import links
from tests.support.processes import cli, states

_names = itertools.count()
NO_PAUSES = "trials that paused at a rung or in a population are not continued in 's': a copy has no pauses"
optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def opened() -> Iterator[Callable[[str], Storage]]:
    """Opens stores, and closes them."""
    storages: list[Storage] = []

    def open_one(url: str) -> Storage:
        storages.append(hopaas_p2p.open_storage(url))
        return storages[-1]

    yield open_one
    for storage in storages:
        storage.close()


@pytest.fixture
def source(opened: Callable[[str], Storage], tmp_path: Path) -> Iterator[Study]:
    """A study with a finished, a failed, a running and a waiting trial, notes, tags and files."""
    storage = opened(str(tmp_path / "from"))
    hopaas_p2p.open_study(storage, "first").stop_all()  # so that ids differ from the copy's
    space = {"x": hopaas_p2p.Float(0, 1), "kind": hopaas_p2p.Categorical(("a", "b"))}
    study = hopaas_p2p.open_study(storage, "moved", space=space, budget=30, policy=hopaas_p2p.StudyPolicy(attempts=2))
    (tmp_path / "model.bin").write_bytes(b"weights" * 1000)
    (tmp_path / "plot.svg").write_text("<svg/>")
    with study.trial() as trial:
        trial.report(0.5, step=1)
        trial.upload(tmp_path / "model.bin")
        trial.tell(0.25)
    with pytest.raises(ValueError, match="broken"), study.trial():
        raise ValueError("broken")
    running = study.ask()
    running.report(0.75, step=0)
    study.enqueue_trial({"x": 0.5})
    notes.save_note(study, "about the study")
    notes.save_note(study, "about a trial", 0)
    notes.change_tags(study, 1, add=["odd"])
    study.set_user_attr("owner", "group")
    study.artifacts().put(tmp_path / "plot.svg")
    study.artifacts().put(tmp_path / "plot.svg", trial=0, filename="late.svg")
    study.storage.flush()
    yield study
    assert running.number == 2  # a trial that nothing refers to would be given back in the middle of a test


def contents(study: Study, directory: Path) -> dict[str, bytes]:
    """The files of a study by trial and name, fetched and checked."""
    found = {}
    for one in study.artifacts().list():
        found[f"{one.trial} {one.filename}"] = study.artifacts().get(one, directory / "fetched").read_bytes()
    return found


FILES = {"0 model.bin": b"weights" * 1000, "None plot.svg": b"<svg/>", "0 late.svg": b"<svg/>"}


@pytest.fixture(params=["memory", "directory", "s3", "postgres"])
def target_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param in ("s3", "postgres"):
        url: str = request.getfixturevalue(f"{request.param}_url")
        return url
    return f"memory://moving-{next(_names)}" if request.param == "memory" else str(tmp_path / "to")


def test_a_copy_has_what_was_finished_with_notes_tags_and_files(
    source: Study, opened: Callable[[str], Storage], target_url: str, tmp_path: Path
) -> None:
    target = opened(target_url)

    result = copy_study(source, target)

    copy = hopaas_p2p.open_study(target, "moved", create=False)
    assert (result.trials, result.files, result.warnings) == (2, 3, [])
    assert states(copy) == ["COMPLETE", "FAIL"]
    for here, there in zip(copy.trials, source.trials, strict=False):
        assert (here.values, here.params, here.intermediate_values) == (
            there.values,
            there.params,
            there.intermediate_values,
        )
        assert (here.datetime_start, here.datetime_complete) == (there.datetime_start, there.datetime_complete)
    assert notes.note_of(copy) == "about the study"
    assert notes.note_of(copy, 0) == "about a trial"
    assert notes.tags_of(copy, 1) == ["odd"]
    assert copy.user_attrs == {"owner": "group"}
    assert copy.state.budget == 30
    assert copy.state.policy.attempts == 2
    assert contents(copy, tmp_path) == FILES
    uuid = target.handle(copy.study_id).uuid
    assert {one.id[:32] for one in copy.artifacts().list()} == {uuid}
    back = opened(f"memory://back-{next(_names)}")
    copy_study(copy, back, name="back")
    assert contents(hopaas_p2p.open_study(back, "back", create=False), tmp_path) == FILES
    assert states(source) == ["COMPLETE", "FAIL", "RUNNING", "WAITING"]


def test_copied_again_only_what_was_finished_since_comes(
    source: Study, opened: Callable[[str], Storage], tmp_path: Path
) -> None:
    target = opened(str(tmp_path / "to"))
    copy_study(source, target)
    source.tell(2, 0.125)
    notes.save_note(source, "found later", 0)
    source.artifacts().put(tmp_path / "plot.svg", trial=0, filename="third.svg")

    again = copy_study(source, target)
    nothing = copy_study(source, target)

    copy = hopaas_p2p.open_study(target, "moved", create=False)
    assert (again.trials, again.already_there, again.files) == (1, 2, 1)
    assert (nothing.trials, nothing.already_there, nothing.files) == (0, 3, 0)
    assert [trial.values for trial in copy.trials] == [[0.25], None, [0.125]]
    assert notes.note_of(copy, 0) == "found later"
    assert len(contents(copy, tmp_path)) == 4


def test_a_copy_that_was_interrupted_keeps_the_budget_and_is_completed_by_the_next(
    source: Study, opened: Callable[[str], Storage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.set_budget(7)
    source.pause()

    def killed(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    target = opened(str(tmp_path / "to"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("hopaas_p2p.moving.arrival._describe", killed)
        copy_study(source, target)
    copy = hopaas_p2p.open_study(target, "moved", create=False)
    assert copy.state.budget == 7
    copy_study(source, target)
    assert states(copy) == ["COMPLETE", "FAIL"]
    assert notes.note_of(copy) == "about the study"
    assert copy.state.budget == 7
    assert copy.state.status == "paused"


def test_of_two_copies_that_begin_at_once_the_second_is_told_to_wait(
    source: Study, opened: Callable[[str], Storage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = opened(str(tmp_path / "to"))
    read = of_study

    def slow(study: Study) -> StudyRecords:
        monkeypatch.setattr("hopaas_p2p.moving.of_study", read)
        copy_study(source, target)
        return read(study)

    monkeypatch.setattr("hopaas_p2p.moving.of_study", slow)
    with pytest.raises(StudyExists, match="has just been created by another process"):
        copy_study(source, target)
    assert states(hopaas_p2p.open_study(target, "moved", create=False)) == ["COMPLETE", "FAIL"]


def test_a_copy_that_is_slow_adds_no_trial_that_another_has_added_meanwhile(
    source: Study, opened: Callable[[str], Storage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = opened(str(tmp_path / "to"))
    copy_study(source, target)
    source.tell(2, 0.125)
    send = arrival.copy_files

    def slow(*args: Any) -> Any:
        monkeypatch.setattr("hopaas_p2p.moving.arrival.copy_files", send)
        assert copy_study(source, target).trials == 1
        return send(*args)

    monkeypatch.setattr("hopaas_p2p.moving.arrival.copy_files", slow)
    assert copy_study(source, target).trials == 0
    assert states(hopaas_p2p.open_study(target, "moved", create=False)) == ["COMPLETE", "FAIL", "COMPLETE"]


def test_unfinished_trials_wait_in_the_copy_if_they_are_asked_for(
    source: Study, opened: Callable[[str], Storage], tmp_path: Path
) -> None:
    target = opened(str(tmp_path / "to"))

    copy_study(source, target, unfinished=True)

    copy = hopaas_p2p.open_study(target, "moved", create=False)
    assert states(copy) == ["COMPLETE", "FAIL", "WAITING", "WAITING"]
    assert copy.ask().params == source.trials[2].params
    assert copy.ask().params["x"] == 0.5


def test_a_copy_of_a_study_with_rungs_keeps_what_is_left_of_the_budget_and_who_continues_whom(
    opened: Callable[[str], Storage], tmp_path: Path
) -> None:
    rungs = hopaas_p2p.Rungs(min=1, max=9, eta=2)
    space = {"x": hopaas_p2p.Float(0, 1)}
    study = hopaas_p2p.open_study(opened(str(tmp_path / "from")), "s", space=space, budget=6, fidelity=rungs)
    held = study.ask()  # is not copied, so the numbers of the others differ there
    for step in (0, 0, 1):
        trial = study.ask()
        trial.report(float(trial.number), step)
        study.tell(trial, state="pruned")
    assert [trial.continues for trial in study.state.trials] == [None, None, None, 1]

    target = opened(str(tmp_path / "to"))
    copied = copy_study(study, target)
    assert copied.warnings == [NO_PAUSES]

    copied = hopaas_p2p.open_study(target, "s", create=False).state
    assert [trial.system.get("hopaas:continues") for trial in copied.trials] == [None, None, "0"]
    assert copied.budget is not None
    assert copied.budget - copied.used() == 6 - (study.state.used() - 1)
    study.tell(held, state="fail")


def test_a_copy_of_a_population_says_that_it_does_not_continue(
    opened: Callable[[str], Storage], tmp_path: Path
) -> None:
    population = hopaas_p2p.Population(size=2, every=1, max=3)
    source = opened(str(tmp_path / "from"))
    study = hopaas_p2p.open_study(source, "s", space={"x": hopaas_p2p.Float(0, 1)}, fidelity=population)
    trial = study.ask()
    trial.report(0.5, 0)
    assert trial.should_prune()
    study.tell(trial, state="pruned")
    copied = copy_study(study, opened(str(tmp_path / "to")))
    (said,) = copied.warnings
    assert said == NO_PAUSES


def test_a_copy_of_a_copy_knows_where_it_came_from(
    source: Study, opened: Callable[[str], Storage], tmp_path: Path
) -> None:
    second, third = opened(str(tmp_path / "second")), opened(str(tmp_path / "third"))
    copy_study(source, second)
    middle = hopaas_p2p.open_study(second, "moved", create=False)

    copy_study(middle, third)
    again = copy_study(middle, third)

    last = hopaas_p2p.open_study(third, "moved", create=False)
    assert again.already_there == 2
    assert contents(last, tmp_path) == FILES
    assert _without_marks(of_study(last)) == _without_marks(of_study(middle))


def run(study: Study, trials: int) -> None:
    """Run so many trials, each with its own value."""
    for _ in range(trials):
        study.tell(study.ask(), float(len(study.trials)))


def values(study: Study) -> list[Any]:
    return [None if trial.values is None else trial.values[0] for trial in study.trials]


def send(source: Study, target: Storage, way: str, directory: Path) -> arrival.Arrived:
    """Bring the study into this store by a copy, or by a file."""
    if way == "copy":
        return copy_study(source, target)
    place = directory / f"{next(_names)}.{way}"
    export_study(source, place, files=directory / "files")
    return import_study(target, place, files=directory / "files" if way == "journal" else None)


@pytest.mark.parametrize("way", ["copy", "study", "journal"])
def test_the_way_back_brings_only_what_is_new(
    source: Study, opened: Callable[[str], Storage], tmp_path: Path, way: str
) -> None:
    """The numbers differ here: the waiting trials 2 and 3 stay at home, and the new ones are 2 and 3 in the copy."""
    target = opened(str(tmp_path / "to"))
    copy_study(source, target)
    copied = hopaas_p2p.open_study(target, "moved", create=False)
    run(copied, 2)
    notes.change_tags(copied, 3, add=["best"])
    notes.save_note(copied, "about a new trial", 2)
    notes.save_note(copied, "on the cluster")
    copied.artifacts().put(tmp_path / "plot.svg", trial=2, filename="new.svg")
    copied.set_user_attr("owner", "cluster")
    copied.set_user_attr("partition", "gpu")

    back = send(copied, source.storage, way, tmp_path)
    again = send(copied, source.storage, way, tmp_path)

    assert (back.trials, back.already_there, back.files, back.warnings) == (2, 2, 1, [])
    assert (again.trials, again.already_there, again.files) == (0, 4, 0)
    assert states(source) == ["COMPLETE", "FAIL", "RUNNING", "WAITING", "COMPLETE", "COMPLETE"]
    assert values(source)[4:] == values(copied)[2:]
    assert notes.tags_of(source, 5) == ["best"]
    assert notes.note_of(source, 4) == "about a new trial"
    assert (notes.note_of(source), source.user_attrs) == ("about the study", {"owner": "group", "partition": "gpu"})
    assert contents(source, tmp_path) == {**FILES, "4 new.svg": b"<svg/>"}
    assert copy_study(source, target).trials == 0


def test_an_old_export_of_a_study_adds_nothing_to_it(source: Study, tmp_path: Path) -> None:
    export_study(source, tmp_path / "before.study")
    notes.save_note(source, "changed since")

    result = import_study(source.storage, tmp_path / "before.study")

    assert (result.trials, result.already_there) == (0, 4)
    assert notes.note_of(source) == "changed since"


@pytest.mark.parametrize("way", ["copy", "study"])
def test_a_trial_has_one_origin_however_many_stores_it_passes(
    opened: Callable[[str], Storage], tmp_path: Path, way: str
) -> None:
    space = {"x": hopaas_p2p.Float(0, 1)}
    first = hopaas_p2p.open_study(opened(str(tmp_path / "a")), "s", space=space)
    run(first, 2)
    circle = [first]
    for name in ("b", "c"):
        storage = opened(str(tmp_path / name))
        send(circle[-1], storage, way, tmp_path)
        circle.append(hopaas_p2p.open_study(storage, "s", create=False))
        run(circle[-1], 1)
    _, second, third = circle

    assert send(third, first.storage, way, tmp_path)[1:3] == (2, 2)
    assert values(first) == values(third) == [1.0, 2.0, 3.0, 4.0]
    for source, target, new in ((first, third, 0), (first, second, 1), (third, second, 0), (second, first, 0)):
        assert send(source, target.storage, way, tmp_path).trials == new
    assert values(second) == values(first)


def test_a_waiting_trial_that_was_run_in_the_copy_brings_its_result_home_once(
    source: Study, opened: Callable[[str], Storage], tmp_path: Path
) -> None:
    target = opened(str(tmp_path / "to"))
    copy_study(source, target, unfinished=True)
    copied = hopaas_p2p.open_study(target, "moved", create=False)
    assert copy_study(copied, source.storage, unfinished=True).trials == 0
    running = copied.ask()
    assert copy_study(copied, source.storage, unfinished=True).trials == 0
    copied.tell(running, 0.5)

    assert [copy_study(copied, source.storage, unfinished=True).trials for _ in range(2)] == [1, 0]

    assert states(source) == ["COMPLETE", "FAIL", "RUNNING", "WAITING", "COMPLETE"]
    assert copy_study(source, target, unfinished=True).trials == 0


def test_a_requeued_copy_is_a_trial_of_its_own(source: Study, opened: Callable[[str], Storage], tmp_path: Path) -> None:
    target = opened(str(tmp_path / "to"))
    copy_study(source, target)
    copied = hopaas_p2p.open_study(target, "moved", create=False)
    copied.requeue(1)

    assert copy_study(copied, source.storage, unfinished=True).trials == 1

    assert states(source)[4:] == ["WAITING"]


def test_a_way_back_that_was_interrupted_is_completed_by_the_next(
    source: Study, opened: Callable[[str], Storage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    target = opened(str(tmp_path / "to"))
    copy_study(source, target)
    copied = hopaas_p2p.open_study(target, "moved", create=False)
    run(copied, 3)
    notes.change_tags(copied, 4, add=["best"])
    monkeypatch.setattr(arrival, "_RECORDS", 1)
    commit = source.storage.peer.commit
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            source.storage.peer, "commit", lambda *args: commit(*args) if len(source.trials) < 5 else killed()
        )
        copy_study(copied, source.storage)
    assert len(source.trials) == 5

    assert copy_study(copied, source.storage)[1:3] == (2, 3)

    assert values(source)[4:] == values(copied)[2:]
    assert notes.tags_of(source, 6) == ["best"]


def test_the_command_brings_results_home(tmp_path: Path) -> None:
    def work() -> None:
        train = ("sh", "-c", 'echo "{\\"value\\": 1}"', "sh", "{x}")
        cli("worker", "-s", "cluster", "--study", "digits", "--max-trials", "2", "--", *train, cwd=tmp_path)

    cli("study", "create", "digits", "--space", "x=float(0,1)", "-s", "laptop", cwd=tmp_path)
    cli("study", "copy", "laptop", "cluster", "--study", "digits", cwd=tmp_path)
    work()

    copied = cli("study", "copy", "cluster", "laptop", "--study", "digits", cwd=tmp_path)
    work()
    cli("study", "export", "digits", "-s", "cluster", "--to", "back.study", cwd=tmp_path)
    imported = cli("study", "import", "digits", "-s", "laptop", "--from", "back.study", cwd=tmp_path)

    assert copied.stderr == "Copied 2 trials of 'digits' to 'digits'.\n"
    assert imported.stderr == "Imported 2 trials into 'digits', which now has 4.\n"


def _without_marks(whole: StudyRecords) -> Any:
    return [
        (number, record.values, {key: fact for key, fact in origin(record).items() if key != "study"})
        for number, record in whole.trials.items()
    ]


@pytest.mark.parametrize("leads", [True, False])
def test_whoever_exports_the_source_to_a_tracker_does_not_export_the_copy(
    source: Study, opened: Callable[[str], Storage], tmp_path: Path, leads: bool
) -> None:
    study = hopaas_p2p.open_study(source.storage, "followed", space={"x": hopaas_p2p.Float(0, 1)})
    said = {"peer": source.storage.peer.uuid if leads else None, "tracker": "mlflow", "link": "https://tracker"}
    study.handle.say(StudySet(system={f"{EXPORTER}abc": json.dumps(said)}))
    target = opened(str(tmp_path / "to"))

    assert copy_study(study, target).warnings == []

    copy = hopaas_p2p.open_study(target, "followed", create=False)
    assert not copy.state.refusals
    assert links(target.get_study_system_attrs(copy.study_id)) == ({} if leads else {"mlflow": "https://tracker"})


def test_a_copy_writes_hundreds_of_attributes_in_one_commit(
    source: Study, opened: Callable[[str], Storage], tmp_path: Path
) -> None:
    study = hopaas_p2p.open_study(source.storage, "told", space={"x": hopaas_p2p.Float(0, 1)})
    texts = {f"a{at}": str(at) for at in range(600)}
    study.handle.say(StudySet(texts, {f"tool:{key}": text for key, text in texts.items()}))
    target = opened(str(tmp_path / "to"))

    assert copy_study(study, target).warnings == []

    state = hopaas_p2p.open_study(target, "told", create=False).state
    assert (len(state.user), len(state.system)) == (600, 600)
    assert state.lsn < 10


def test_a_copy_goes_over_no_other_study(source: Study, opened: Callable[[str], Storage], tmp_path: Path) -> None:
    target = opened(str(tmp_path / "to"))
    hopaas_p2p.open_study(target, "moved")

    with pytest.raises(StudyExists, match="--as"):
        copy_study(source, target)
    with pytest.raises(InvalidInput, match="onto itself"):
        copy_study(source, source.storage)
    copy_study(source, source.storage, name="twin")

    assert len(hopaas_p2p.open_study(target, "moved").trials) == 0
    assert states(hopaas_p2p.open_study(source.storage, "twin", create=False)) == ["COMPLETE", "FAIL"]


def test_a_lost_file_is_a_note_and_a_changed_one_is_left_behind(
    source: Study, opened: Callable[[str], Storage], tmp_path: Path
) -> None:
    model = source.artifacts().find("model.bin")
    late = source.artifacts().find("late.svg")
    keys = {one.id: tmp_path / "from" / "v1" / "artifacts" / one.id.replace("-", "/file/") for one in (model, late)}
    keys[model.id].unlink()
    keys[late.id].write_text("<svg>other</svg>")

    result = copy_study(source, opened(str(tmp_path / "to")))

    assert (result.trials, result.files) == (2, 1)
    assert sorted(warning.partition(": ")[2] for warning in result.warnings) == [
        "its bytes are missing",
        "its bytes differ from those that were stored; it was not copied",
    ]


def test_a_store_without_files_says_so_before_anything_is_copied(
    source: Study, opened: Callable[[str], Storage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = opened(str(tmp_path / "to"))

    def refuse() -> None:
        raise ConfigurationError("this store keeps no files")

    monkeypatch.setattr(target.peer.store, "artifacts", refuse)

    with pytest.raises(ConfigurationError, match="keeps no files"):
        copy_study(source, target)
    assert target.get_all_studies() == []
    copy_study(source, target, with_files=False)

    assert states(hopaas_p2p.open_study(target, "moved", create=False)) == ["COMPLETE", "FAIL"]


def test_a_file_that_is_too_large_for_the_store_is_left_behind_with_a_note(
    source: Study, opened: Callable[[str], Storage], postgres_url: str, tmp_path: Path
) -> None:
    with (tmp_path / "huge.bin").open("wb") as file:
        file.truncate((64 << 20) + 1)
    huge = source.artifacts().put(tmp_path / "huge.bin", trial=0)
    target = opened(postgres_url)

    result = copy_study(source, target)

    assert (result.trials, result.files) == (2, 3)
    (warning,) = result.warnings
    assert warning.startswith(f"the file {huge.id} was not copied: ")
    copy = hopaas_p2p.open_study(target, "moved", create=False)
    assert sorted(one.filename for one in copy.artifacts().list()) == ["huge.bin", "late.svg", "model.bin", "plot.svg"]


def test_the_command_copies_one_study_or_all(source: Study, tmp_path: Path) -> None:
    alone = cli("study", "copy", "from", "to", "--study", "moved", "--json", cwd=tmp_path)
    unclear = cli("study", "copy", "from", "to", cwd=tmp_path, check=False)
    everything = cli("study", "copy", "from", "to", "--all", cwd=tmp_path)
    named = cli("study", "copy", "from", "to", "--study", "moved", "--as", "other", cwd=tmp_path)

    assert json.loads(alone.stdout)[0]["trials"] == 2
    assert "has 2 studies" in unclear.stderr
    assert "2 were there already" in everything.stderr
    assert "to 'other'" in named.stderr
    wrong = [("nothing", "there", "--all"), ("from", "there", "--study", "missing"), ("from", "there")]
    for words in wrong:
        failed = cli("study", "copy", *words, cwd=tmp_path, check=False)
        assert failed.returncode != 0
        assert failed.stderr.count("\n") == 1
    assert not (tmp_path / "there").exists()
    listed = json.loads(cli("study", "list", "-s", "to", "--json", cwd=tmp_path).stdout)
    assert [one["name"] for one in listed] == ["moved", "first", "other"]


# --- export and import with files ---


@pytest.mark.parametrize("form", ["study", "optuna"])
def test_files_go_out_with_an_export_and_come_back(
    source: Study, opened: Callable[[str], Storage], tmp_path: Path, form: str
) -> None:
    path = str(tmp_path / {"study": "s.study", "optuna": "s.journal"}[form])

    directory = tmp_path / "files" if form == "optuna" else None  # a study's own file holds them
    export_study(source, path, files=directory)
    target = opened(str(tmp_path / "to"))
    result = import_study(target, path, files=directory)

    back = hopaas_p2p.open_study(target, "moved", create=False)
    assert (result.files, result.warnings) == (3, [])
    assert contents(back, tmp_path) == FILES


def test_optuna_finds_the_files_of_an_export_and_we_find_optunas(
    source: Study, opened: Callable[[str], Storage], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/optuna.db"
    export_study(source, url, files=tmp_path / "files")
    database = optuna.storages.RDBStorage(url)
    theirs = optuna.load_study(study_name="moved", storage=database)
    files = FileSystemArtifactStore(str(tmp_path / "files"))

    (meta,) = get_all_artifact_meta(theirs.trials[0], storage=database)
    download_artifact(artifact_store=files, file_path=str(tmp_path / "got"), artifact_id=meta.artifact_id)
    assert (tmp_path / "got").read_bytes() == FILES["0 model.bin"]
    (tmp_path / "new.txt").write_text("written by Optuna")
    upload_artifact(artifact_store=files, file_path=str(tmp_path / "new.txt"), study_or_trial=theirs)
    target = opened(str(tmp_path / "to"))
    import_study(target, url, files=tmp_path / "files")

    back = hopaas_p2p.open_study(target, "moved", create=False)
    assert contents(back, tmp_path) == {**FILES, "None new.txt": b"written by Optuna"}
    database.engine.dispose()


def test_a_file_that_cannot_be_read_for_a_moment_is_not_left_behind(
    source: Study, opened: Callable[[str], Storage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    table, directory = f"sqlite:///{tmp_path}/optuna.db", tmp_path / "files"
    export_study(source, table, files=directory)
    target = opened(str(tmp_path / "to"))
    with monkeypatch.context() as patch:
        patch.setattr(files, "open_regular", fail)
        with pytest.raises(StoreUnreachable, match="cannot be used at the moment"):
            import_study(target, table, files=directory)
    assert import_study(target, table, files=directory).warnings == []
    copy = hopaas_p2p.open_study(target, "moved", create=False)
    assert contents(copy, tmp_path).keys() == contents(source, tmp_path).keys()


def test_a_directory_of_files_that_is_not_there_is_one_clear_line(source: Study, tmp_path: Path) -> None:
    cli("study", "export", "moved", "-s", "from", "--to", "s.study", cwd=tmp_path)

    done = cli("study", "import", "-s", "to", "--from", "s.study", "--files", "none", cwd=tmp_path, check=False)

    assert done.returncode == 2
    assert done.stderr == "hopaas-p2p: there is no directory none\n"
