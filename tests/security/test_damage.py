"""Damaged and forged logs, of ours and of Optuna's: what reads them says so, and does no more than there is to read."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path
from random import Random

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.codec import following
from hopaas_p2p.core.records import Commit, Record, StudyDefine, TrialCreate, TrialFinish, TrialState
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import InvalidInput, StoreUnreachable
from hopaas_p2p.moving import import_study, rescue
from hopaas_p2p.stores.base import Entry
from hopaas_p2p.stores.directory.packs import SPAN
from hopaas_p2p.stores.directory.store import DirectoryStore


def _told(commits: int) -> list[Entry]:
    """A log in which one peer starts and ends trials."""
    entries, total = list[Entry](), 0
    for lsn in range(1, commits + 1):
        record: Record = TrialCreate()
        if lsn == 1:
            record = StudyDefine("s", ("minimize",))
        elif lsn % 2:
            record = TrialFinish((lsn - 3) // 2, 1, TrialState.COMPLETE, (1.0,))
        payload = codec.encode(Commit("w", lsn, "w", lsn, (record,)))
        entries.append(Entry(lsn, payload, before=total))
        total = following(total, payload)
    return entries


@pytest.mark.parametrize("forged", ["holes", "sums", "both"])
def test_a_rescue_guesses_for_as_long_as_the_log_is_and_no_longer(forged: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each guess is a replay of all that is before it."""
    entries = _told(500)
    if forged != "sums":
        entries = [one for one in entries if one.lsn % 5 or one.lsn == 1]
    if forged != "holes":
        entries = [Entry(one.lsn, one.payload, before=(one.before or 0) ^ (one.lsn % 2)) for one in entries]
    replayed, loaded = 0, snapshot.load

    def load(data: bytes) -> State:
        nonlocal replayed
        state = loaded(data)
        replayed += state.trials.size
        return state

    def apply(state: State, entry: Entry) -> object:
        nonlocal replayed
        replayed += 1
        return applied(state, entry)

    applied = rescue._apply
    monkeypatch.setattr(rescue, "_apply", apply)
    monkeypatch.setattr(snapshot, "load", load)
    found = rescue.united(State(), 0, entries)
    assert found.study is not None
    assert len(found.study.trials) >= 100
    assert replayed < 1.5 * sum(rescue._EFFORT) * len(entries)


def test_a_rescue_of_an_honest_log_with_many_damaged_commits_has_guesses_enough() -> None:
    """Here and there a record was refused, so no guess of what is missing leaves nothing refused."""
    random, state = Random(1), State()
    entries, creating, seqs, total = list[Entry](), list[int](), Counter[str](), 0
    running, ended = list[tuple[str, int]](), list[int]()

    def say(writer: str, record: Record) -> int | None:
        nonlocal total
        seqs[writer] += 1
        payload = codec.encode(Commit(writer, seqs[writer], writer, len(entries) + 1, (record,)))
        entries.append(Entry(len(entries) + 1, payload, before=total))
        total = following(total, payload)
        return rescue._apply(state, entries[-1])[-1].number

    say("p0", StudyDefine("s", ("minimize",)))
    while len(entries) < 1500:
        writer = f"p{random.randrange(8)}"
        mine = next((one for one in running if one[0] == writer), None)
        if ended and random.random() < 0.02:
            say(writer, TrialFinish(random.choice(ended[-50:]), 1, TrialState.COMPLETE, (-1.0,)))
        elif mine is not None and random.random() < 0.6:
            running.remove(mine)
            ended.append(mine[1])
            say(writer, TrialFinish(mine[1], 1, TrialState.COMPLETE, (float(mine[1]),)))
        elif (number := say(writer, TrialCreate())) is not None:
            running.append((writer, number))
            creating.append(len(entries))
    lost = {next(lsn for lsn in creating if lsn >= 75 + 150 * place) for place in range(10)}
    found = rescue.united(State(), 0, [one for one in entries if one.lsn not in lost])
    assert found.study is not None
    there = {record.values for record in found.study.trials.values()}
    missing = [number for number in ended if (float(number),) not in there]
    assert len(missing) <= 10


def test_a_commit_that_no_log_can_have_changes_nothing_in_a_rescue(tmp_path: Path) -> None:
    url = tmp_path / "store"
    with contextlib.closing(hopaas_p2p.open_study(url, "s")) as study:
        uuid = study.handle.uuid
        study.tell(study.ask(), 1.0)
    for log in (f"study/{uuid}", "studies"):
        folder = url / "v1" / log / "commits" / f"{1:020d}"
        (folder / f"{0:020d}").symlink_to((folder / f"{1:020d}").readlink())
    store = DirectoryStore(url)
    assert rescue.names_of(store) == ({uuid: "s"}, True)
    found = rescue.rescue(store, uuid)
    assert (found.damaged, found.histories) == ([], 1)


@pytest.mark.parametrize("lsn", [10**15, 10**20 - 1])
def test_a_commit_far_behind_the_end_costs_a_rescue_nothing(tmp_path: Path, lsn: int) -> None:
    url = tmp_path / "store"
    with contextlib.closing(hopaas_p2p.open_study(url, "s")) as study:
        uuid = study.handle.uuid
        study.tell(study.ask(), 1.0)
    for log in (f"study/{uuid}", "studies"):
        commits = url / "v1" / log / "commits"
        text = (commits / f"{1:020d}" / f"{1:020d}").readlink()
        far = commits / f"{(lsn - 1) // SPAN * SPAN + 1:020d}" / f"{lsn:020d}"
        far.parent.mkdir()
        far.symlink_to(text)
    store = DirectoryStore(url)
    assert rescue.names_of(store) == ({uuid: "s"}, False)
    assert "cannot be read, from commit" in str(rescue.damage(store, uuid))
    found = rescue.rescue(store, uuid)
    assert found.lost == found.damaged == [range(found.damaged[0].start, lsn)]
    assert found.study is not None
    assert len(found.study.trials) == 1


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The lines of a journal of Optuna's with two trials that say everything."""
    path = tmp_path_factory.mktemp("optuna") / "s.journal"
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    study = optuna.create_study(storage=optuna.storages.JournalStorage(backend), study_name="s")
    study.set_user_attr("by", "ann")

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("c", ["a", "b"])
        trial.suggest_int("n", 1, 3)
        trial.set_user_attr("k", 1)
        trial.report(0.5, 1)
        return trial.suggest_float("x", 0, 1)

    study.optimize(objective, n_trials=2)
    return path.read_text().splitlines()


@pytest.mark.parametrize(
    "value", ["null", "-1", "1e400", '"x"', "[[]]", "{}", "1" + "0" * 400, f"{2**70}", '"\\ud800"', "[" * 5000, "\0"]
)
def test_a_damaged_journal_of_optunas_is_imported_or_refused_in_one_line(
    journal: list[str], tmp_path: Path, value: str
) -> None:
    """One field of one line has another value, in every place that there is."""
    path, refused = tmp_path / "s.journal", list[str]()
    for place, line in enumerate(journal):
        for key in json.loads(line):
            said = json.loads(line)
            said[key] = "HERE"
            text = json.dumps(said).replace('"HERE"', value)
            path.write_text("\n".join([*journal[:place], text, *journal[place + 1 :], ""]))
            with contextlib.closing(hopaas_p2p.open_storage(f"memory://{tmp_path}{place}{key}")) as storage:
                try:
                    import_study(storage, path, name="copy")
                except InvalidInput as error:
                    refused.append(str(error))
    assert refused
    assert not [one for one in refused if "\n" in one or len(one) > 600]


def test_a_database_that_does_not_answer_is_not_called_damaged(tmp_path: Path) -> None:
    url = "postgresql://ann:hunter2@localhost:1/db"
    with contextlib.closing(hopaas_p2p.open_storage(f"memory://{tmp_path}")) as storage:
        with pytest.raises(StoreUnreachable, match="localhost:1/db: ") as caught:
            import_study(storage, url, name="copy")
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["", "sqlite:///"])
def test_a_link_that_leads_to_itself_is_no_file_to_import(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "s").symlink_to("s")
    storage = hopaas_p2p.open_storage(f"memory://{tmp_path}")
    with contextlib.closing(storage), pytest.raises((OSError, InvalidInput)):
        import_study(storage, f"{scheme}{tmp_path / 's'}", name="copy")
