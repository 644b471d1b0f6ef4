"""Damaged studies: what is before and behind the damage is rescued into a new study, and the work goes on there."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

import hopaas_p2p
from hopaas_p2p import notes, spool
from hopaas_p2p.cli import main
from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.codec import following
from hopaas_p2p.core.names import handover_prefix
from hopaas_p2p.core.records import Commit, TrialCreate
from hopaas_p2p.core.state import COMPLETE, State
from hopaas_p2p.errors import BrokenChain, StoreCorrupt
from hopaas_p2p.moving import rescue
from hopaas_p2p.open import open_store
from hopaas_p2p.peer import handover
from hopaas_p2p.remote.box import Box
from hopaas_p2p.stores.base import Entry, read_all
from hopaas_p2p.stores.directory.log import FolderLog
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.stores.objects.log import SPAN
from hopaas_p2p.stores.s3 import gc
from hopaas_p2p.stores.s3.store import S3Store
from tests.support.processes import cli, until
from tests.support.spooled import keep

SPACE = {"x": hopaas_p2p.Float(0, 1)}


@pytest.fixture(autouse=True)
def own_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def filled(url: Path, trials: int, *, snapshot: bool = False) -> tuple[str, list[float]]:
    """The uuid of a study with so many trials, and their values; if asked for, once there is a snapshot."""
    with contextlib.closing(hopaas_p2p.open_study(url, "s", space=SPACE)) as study:
        uuid = study.handle.uuid
        for number in range(trials):
            study.tell(study.ask(), float(number))
        if snapshot:
            until(lambda: DirectoryStore(url).log(uuid).newest_snapshot() is not None, 60)
        return uuid, [float(number) for number in range(trials)]


def values(url: Path, name: str) -> list[float | None]:
    with contextlib.closing(hopaas_p2p.open_study(url, name, create=False)) as study:
        return [trial.value for trial in study.trials]


def commit_file(url: Path, uuid: str, lsn: int) -> Path:
    """A link that points nowhere, which `Path.glob` does not see."""
    return url / "v1" / "study" / uuid / "commits" / f"{(lsn - 1) // SPAN * SPAN + 1:020d}" / f"{lsn:020d}"


def run_rescue(url: Path, *words: str) -> dict[str, object]:
    (one,) = json.loads(cli("doctor", str(url), "--rescue", "--json", *words).stdout)
    assert isinstance(one, dict)
    return one


def test_a_commit_that_is_missing_costs_its_own_words_only(tmp_path: Path) -> None:
    """A peer alone in a directory: commit 2k+2 says the start of trial k, and 2k+3 its end."""
    store = tmp_path / "store"
    uuid, told = filled(store, trials=10)
    everything = list(read_all(open_store(str(store)).log(uuid)))
    lost = 12
    commit_file(store, uuid, lost).unlink()
    with pytest.raises(StoreCorrupt):
        list(read_all(open_store(str(store)).log(uuid)))

    result = run_rescue(store)

    assert (result["damaged"], result["lost"]) == ([lost], [lost])
    assert len(everything) > lost
    rescued = values(store, "s-rescued")
    kept = [value for value in rescued if value in told]
    assert len(kept) >= len(told) - 1
    assert kept == sorted(kept), "every value is that of its own trial"
    with contextlib.closing(hopaas_p2p.open_study(store, "s-rescued", create=False)) as study:
        marked = [trial.number for trial in study.trials if rescue.MARK in trial.user_attrs]
        assert marked == result["uncertain"]
        before = [trial for trial in study.trials if trial.number not in marked]
        assert all(trial.params for trial in before)
        study.optimize(lambda trial: trial.params["x"], n_trials=1)  # the work goes on


def test_notes_and_files_of_trials_come_along(tmp_path: Path) -> None:
    """Attributes of a study name a trial by its id, which holds the study's own: 0 for the first of a store only."""
    (tmp_path / "plot.txt").write_text("a plot")
    with contextlib.closing(hopaas_p2p.open_storage(str(tmp_path / "store"))) as storage:
        hopaas_p2p.open_study(storage, "first")
        study = hopaas_p2p.open_study(storage, "s", space={"x": hopaas_p2p.Float(0, 1)})
        study.optimize(lambda trial: trial.params["x"], n_trials=2)
        notes.save_note(study, "the better one", 1)
        study.artifacts().put(tmp_path / "plot.txt", trial=1)

    run_rescue(tmp_path / "store", "--study", "s")

    with contextlib.closing(hopaas_p2p.open_study(tmp_path / "store", "s-rescued", create=False)) as study:
        assert notes.note_of(study, 1) == "the better one"
        assert [one.trial for one in study.artifacts().list()] == [1]


@pytest.mark.parametrize("lost", [[9], [9, 10], [8, 9, 10, 11]])
def test_trials_keep_their_numbers_whatever_is_missing(tmp_path: Path, lost: list[int]) -> None:
    store = tmp_path / "store"
    uuid, told = filled(store, trials=10)
    for lsn in lost:
        commit_file(store, uuid, lsn).unlink()
    run_rescue(store)
    rescued = values(store, "s-rescued")
    assert len(rescued) == len(told)
    assert all(found in (None, value) for found, value in zip(rescued, told, strict=True))
    assert rescued[:2] == told[:2]
    assert rescued[-3:] == told[-3:]


def with_a_damaged_pack(store: Path, place: Callable[[bytes, Entry], int]) -> list[float]:
    """The values of a study with a snapshot, and with a pack in which a byte of commit 100 is damaged."""
    uuid, told = filled(store, trials=150, snapshot=True)
    log = DirectoryStore(store).log(uuid)
    assert isinstance(log, FolderLog)
    pack = store / "v1" / log.pack(1)
    data, entry = pack.read_bytes(), next(itertools.islice(read_all(log), 99, None))
    at = place(data, entry)
    pack.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    for folder in (store / "v1" / "study" / uuid / "commits").glob("*1"):
        for one in folder.iterdir():
            if int(one.name.strip(".").partition(".")[0]) <= 256:
                one.unlink()
    with pytest.raises(StoreCorrupt):
        list(read_all(DirectoryStore(store).log(uuid)))
    return told


def test_a_snapshot_behind_the_damage_stands_for_it(tmp_path: Path) -> None:
    store = tmp_path / "store"
    told = with_a_damaged_pack(store, lambda data, entry: data.index(entry.payload[5:]))

    result = run_rescue(store)

    assert (result["damaged"], result["lost"], result["uncertain"]) == ([100], [], [])
    assert values(store, "s-rescued") == told


@pytest.mark.parametrize(
    "place",
    [
        lambda data, entry: data.index(entry.before.to_bytes(8, "little")),
        lambda data, entry: data.index(entry.payload[5:]) - 5,
    ],
    ids=["the sum before it", "its checksum"],
)
def test_what_is_damaged_around_a_commit_is_found_and_costs_nothing(
    tmp_path: Path, place: Callable[[bytes, Entry], int]
) -> None:
    store = tmp_path / "store"
    told = with_a_damaged_pack(store, place)

    result = run_rescue(store)

    assert (result["damaged"], result["lost"]) == ([], [])
    assert values(store, "s-rescued") == told


def test_a_live_peer_hands_over_what_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "REQUESTS_EVERY", 1.0)
    store = tmp_path / "store"
    study = hopaas_p2p.open_study(store, "s", space=SPACE, policy=hopaas_p2p.StudyPolicy(lease_ttl=3.0))
    for number in range(6):
        study.tell(study.ask(), float(number))
    uuid = study.handle.uuid
    commit_file(store, uuid, 6).unlink()
    over = threading.Event()
    found: list[dict[str, object]] = []

    def ask() -> None:
        found.append(run_rescue(store, "--from-live"))
        over.set()

    thread = threading.Thread(target=ask)
    thread.start()
    until(over.is_set, 60.0)
    thread.join()
    assert (found[0]["damaged"], found[0]["lost"], found[0]["uncertain"]) == ([6], [], [])
    assert values(store, "s-rescued") == [float(number) for number in range(6)]
    assert not list((store / "v1" / "artifacts" / uuid / "rescue").glob("*")), "what was handed over is removed"
    study.close()


def test_who_may_not_ask_live_peers_is_told_so_at_once_and_gets_what_the_log_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Postgres does not take such a request of others than the study's owners."""
    store = tmp_path / "store"
    uuid, _ = filled(store, trials=10)
    commit_file(store, uuid, 12).unlink()
    monkeypatch.setattr(DirectoryStore, "beat", lambda *_: None)

    assert main.run(["doctor", str(store), "--rescue", "--from-live"]) == 0

    said = capsys.readouterr().err
    assert "its peers were not asked for replicas: only an owner may ask a study's peers for their states" in said
    assert len(values(store, "s-rescued")) == 10


def test_a_state_that_nobody_asked_for_is_not_believed(tmp_path: Path) -> None:
    """Whoever may write to a study may leave one there, long before its log is damaged."""
    uuid, told = filled(tmp_path / "store", trials=10)
    with contextlib.closing(open_store(str(tmp_path / "store"))) as store:
        forged = State()
        for entry in read_all(store.log(uuid)):
            apply(forged, entry.lsn, codec.decode(entry.payload), entry.stamp)
        apply(forged, forged.lsn + 1, Commit("m", 1, "m", 0, (TrialCreate(COMPLETE, values=(-1e9,)),)))
        (tmp_path / "forged").write_bytes(snapshot.dump(forged))
        store.artifacts().put(f"{handover_prefix(uuid)}m", tmp_path / "forged")
    commit_file(tmp_path / "store", uuid, 12).unlink()
    run_rescue(tmp_path / "store")
    assert len(values(tmp_path / "store", "s-rescued")) == len(told)


def test_what_could_not_be_sent_is_added(tmp_path: Path) -> None:
    """A peer that stopped at a broken history has left in its spool what the log has not."""
    from hopaas_p2p import spool
    from tests.support.lease_peer import store_away

    store = tmp_path / "store"
    uuid, _ = filled(store, trials=4)
    study = hopaas_p2p.open_study(hopaas_p2p.open_storage(store, patience=0.0), "s", space=SPACE)
    trial = study.ask()
    study.storage.flush()
    with store_away():
        study.tell(trial, 4.0)
        study.close()
    assert len(list(spool.waiting())) == 1
    commit_file(store, uuid, 5).unlink()
    result = run_rescue(store)
    assert result["from_spool"] == 1
    assert values(store, "s-rescued")[-1] == 4.0


def test_a_log_of_two_histories_is_one_study_with_what_its_peers_have_kept(tmp_path: Path) -> None:
    """Two peers wrote commit 9, as where a server lets both: one of them found out, and its words are in its spool."""
    from hopaas_p2p import spool
    from hopaas_p2p.core.records import TrialCreate, TrialFinish, TrialState
    from hopaas_p2p.stores.base import Outgoing, Placed

    sound, store = tmp_path / "sound", tmp_path / "store"
    uuid, _ = filled(sound, trials=4)
    old, new = open_store(str(sound)), open_store(str(store))
    entries = list(read_all(old.log(uuid)))
    entries[8] = replace(entries[8], before=12345)
    new.log(uuid).restore(None, entries)  # type: ignore[attr-defined]
    new.catalog().restore(None, read_all(old.catalog()))  # type: ignore[attr-defined]
    lost = Commit("other", 1, "other", 0, (TrialCreate(TrialState.RUNNING, params={"x": 0.5}),))
    told = Commit("other", 2, "other", 0, (TrialFinish(4, 1, TrialState.COMPLETE, (9.0,)),))
    payloads = [codec.encode(lost), codec.encode(told)]
    before = following(entries[7].before or 0, entries[7].payload)
    kept = [
        Placed(9, before, Outgoing("other:1", payloads[0])),
        Placed(10, following(before, payloads[0]), Outgoing("other:2", payloads[1])),
    ]
    keep(kept, store=new.url, study=uuid, name="s", why="history")
    spool.export(tmp_path / "from-its-node")
    for path, _ in spool.histories():
        path.unlink()
    cli("admin", "spool", "send", str(tmp_path / "from-its-node"))

    done = cli("doctor", str(store), "--rescue")

    assert "the log has 2 histories: some commits do not follow the commits before them" in done.stderr
    assert values(store, "s-rescued") == [0.0, 1.0, 2.0, 3.0, 9.0], "the other's trial 3 has a number of its own"


def test_a_directory_in_which_a_pack_and_a_single_file_differ_gives_both_commits(tmp_path: Path) -> None:
    """As where files of a backup were copied into it."""
    log = DirectoryStore(tmp_path / "store").log("u")
    payloads = [codec.encode(Commit("ann", seq, "ann", 0, ())) for seq in range(1, SPAN + 1)]
    sums = itertools.accumulate(payloads, following, initial=0)
    log.restore(None, [Entry(lsn, one, before=total) for lsn, (one, total) in enumerate(zip(payloads, sums), 1)])  # noqa: B905
    other = codec.encode(Commit("bob", 1, "bob", 0, ()))
    log.objects.put_new(log.key(7), other)
    log.objects.put_new(log.key(8), payloads[7])
    assert [(one.lsn, one.payload) for one in log.salvage()] == [
        *enumerate(payloads[:7], 1),
        (7, other),
        *enumerate(payloads[7:], 8),
    ]


def test_what_a_log_has_lost_by_a_return_to_an_older_copy_is_told_and_rescued(tmp_path: Path) -> None:
    """The log is whole, so only the spool of its peers knows better."""
    store = tmp_path / "store"
    filled(store, trials=2)
    shutil.copytree(store, tmp_path / "copy", symlinks=True)
    with contextlib.closing(hopaas_p2p.open_study(store, "s", space=SPACE)) as study:
        for value in (2.0, 3.0):
            study.tell(study.ask(), value)
        store.rename(tmp_path / "newer")
        (tmp_path / "copy").rename(store)
        study.handle.log.log.history._checked_at = 0.0  # type: ignore[attr-defined]
        with pytest.raises(BrokenChain):
            study.ask()
    assert values(store, "s") == [0.0, 1.0]
    assert "commits that a log may have lost" in cli("admin", "spool", "list").stderr
    examined = cli("doctor", str(store), check=False)
    assert examined.returncode == 1
    assert "study s, spool: " in examined.stdout
    assert "of the commits in this machine's spool" in examined.stdout
    cli("doctor", str(store), "--rescue")
    assert values(store, "s-rescued") == [0.0, 1.0, 2.0, 3.0]


def test_work_on_a_whole_store_is_done_beside_it_and_not_through_a_server(tmp_path: Path) -> None:
    there, file = tmp_path / "there", str(tmp_path / "backup")
    hopaas_p2p.open_study(there, "s").close()
    cli("admin", "backup", str(there), file)
    for url in (Box.make(tmp_path / "box", "s3://far").url, "https://gateway.example.org"):
        for words in (
            ["doctor", url, "--rescue"],
            ["admin", "init", url],
            ["admin", "backup", url, f"{file}.new"],
            ["admin", "restore", file, url],
        ):
            refused = cli(*words, check=False)
            assert refused.returncode == 78, words
            assert f"{url} leads to a store through a server; use the URL of the store itself" in refused.stderr


def test_commits_that_were_cleaned_up_are_not_taken_for_lost(s3_url: str) -> None:
    with contextlib.closing(hopaas_p2p.open_study(s3_url, "s", space=SPACE)) as study:
        for value in (0.0, 1.0):
            study.tell(study.ask(), value)
        uuid = study.handle.uuid
        log = study.handle.log
        keep(log.session.history(), store=s3_url, study=uuid, name="s", why="history")
        log.write_snapshot()
        study.tell(study.ask(), 2.0)
    with contextlib.closing(S3Store(s3_url, create=False)) as store:
        assert [one.what for one in gc._collect(store, -60.0, dry_run=False)] == ["commits that snapshots contain"]
        assert rescue.damage(store, uuid) is None
        found = rescue.rescue(store, uuid)
    assert found.study is not None
    assert [trial.values for trial in found.study.trials.values()] == [(0.0,), (1.0,), (2.0,)]
    assert (found.from_spool, found.histories) == (0, 1)


def test_a_sound_store_is_left_alone(tmp_path: Path) -> None:
    filled(tmp_path / "store", trials=2)
    done = cli("doctor", str(tmp_path / "store"), "--rescue")
    assert done.stderr == "No study is damaged.\n"
    assert json.loads(cli("doctor", str(tmp_path / "store"), "--rescue", "--json").stdout) == []


def test_a_result_that_waits_in_the_spool_is_no_damage(tmp_path: Path) -> None:
    """Another peer has written since, so that the result follows an earlier commit than the last."""
    from tests.support.lease_peer import store_away

    store = tmp_path / "store"
    study = hopaas_p2p.open_study(hopaas_p2p.open_storage(store, patience=0.0), "s", space=SPACE)
    trial = study.ask()
    study.storage.flush()
    filled(store, trials=1)
    with store_away():
        study.tell(trial, 4.0)
        study.close()
    assert len(list(spool.waiting())) == 1
    assert rescue.damage(open_store(str(store)), study.handle.uuid) is None


def test_another_store_takes_the_rescued_study(tmp_path: Path) -> None:
    store = tmp_path / "store"
    uuid, _ = filled(store, trials=5)
    commit_file(store, uuid, 4).unlink()
    run_rescue(store, "--to", str(tmp_path / "new"), "--as", "better")
    assert len(values(tmp_path / "new", "better")) == 5
    refused = cli("doctor", str(store), "--rescue", "--to", str(tmp_path / "new"), "--as", "better", check=False)
    assert refused.returncode == 78
    assert "--as NAME" in refused.stderr
