"""Spooled results arrive from anywhere: under another URL of the store, from another machine, with another login."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import stat
import time
from pathlib import Path

import pytest

import hopaas_p2p
from hopaas_p2p import spool
from hopaas_p2p.errors import ConfigurationError, StoreUnreachable, StudyDeleted
from hopaas_p2p.ports.ticket import carry, ending, ticket_of
from hopaas_p2p.stores.postgres.store import PostgresStore
from tests.support.lease_peer import store_away
from tests.support.postgres_people import Place
from tests.support.processes import cli
from tests.support.spooled import keep
from tests.support.ticking import tick

SPACE = {"x": hopaas_p2p.Float(0, 1)}


@pytest.fixture(autouse=True)
def own_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def leave_in_spool(url: str, value: float = 0.25) -> None:
    """A peer whose store goes away in the middle of a trial, and stays away."""
    study = hopaas_p2p.open_study(hopaas_p2p.open_storage(url, patience=0.0), "s", space=SPACE)
    trial = study.ask()
    study.storage.flush()
    with store_away():
        study.tell(trial, value)
        study.close()
    assert len(list(spool.waiting())) == 1


def take_part(url: str) -> None:
    """A peer that does its errands once."""
    with contextlib.closing(hopaas_p2p.open_study(url, "s", space=SPACE)) as study:
        tick(study.storage.peer)


def values(url: str) -> list[float | None]:
    with contextlib.closing(hopaas_p2p.open_study(url, "s", create=False)) as study:
        return [trial.value for trial in study.trials]


def test_any_peer_of_the_store_sends_it_whatever_url_it_uses(tmp_path: Path) -> None:
    leave_in_spool(f"{tmp_path}/store")
    (tmp_path / "mounted-here").symlink_to(tmp_path / "store")
    take_part(f"{tmp_path}/mounted-here")
    assert not list(spool.waiting())
    assert values(f"{tmp_path}/store") == [0.25]


def test_a_peer_that_looked_before_it_knew_the_studies_looks_again_when_it_does(tmp_path: Path) -> None:
    """Where a read may be a little old, the thread starts before the list of studies is read."""
    leave_in_spool(f"{tmp_path}/store")
    (tmp_path / "mounted-here").symlink_to(tmp_path / "store")
    with contextlib.closing(hopaas_p2p.open_storage(f"{tmp_path}/mounted-here")) as storage:
        tick(storage.peer)
        assert storage.study_names() == ["s"]
        tick(storage.peer)
    assert not list(spool.waiting())
    assert values(f"{tmp_path}/store") == [0.25]


def test_a_peer_sends_it_however_short_it_lives(tmp_path: Path) -> None:
    leave_in_spool(f"{tmp_path}/store")
    (tmp_path / "mounted-here").symlink_to(tmp_path / "store")
    with contextlib.closing(hopaas_p2p.open_study(f"{tmp_path}/mounted-here", "s", space=SPACE)) as study:
        study.storage.peer.jobs.stop(within=10.0)  # it never comes to anything
        study.tell(study.ask(), 0.5)
    assert not list(spool.waiting())
    assert values(f"{tmp_path}/store") == [0.25, 0.5]


def test_a_spool_does_not_move_with_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "state")  # no absolute path, which its specification says to ignore
    leave_in_spool(f"{tmp_path}/store")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(list(spool.waiting())) == 1


def test_of_a_study_that_was_deleted_a_result_stays_and_the_way_to_be_rid_of_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{tmp_path}/store"
    study = hopaas_p2p.open_study(url, "s", space=SPACE)
    trial = study.ask()
    finish, log = study.handle.finish, study.handle.log.log

    def deleted_meanwhile(*words: object, **more: object) -> None:
        log.destroy()
        finish(*words, **more)

    monkeypatch.setattr(study.handle, "finish", deleted_meanwhile)
    with pytest.raises(StudyDeleted):
        study.tell(trial, 0.25)
    study.close()
    ((path, _),) = spool.waiting()
    assert f"the end of trial 0 is kept in {path}" in caplog.messages

    why = f"{path}: the study 's' was deleted. If nobody restores it from a backup, remove this file\n"
    assert cli("admin", "spool", "send", "--store", url, check=False).stderr.endswith(why)
    path.unlink()
    assert cli("admin", "spool", "send", "--store", url).stderr == "No results are waiting to be sent.\n"


def test_a_result_of_a_deleted_study_is_mentioned_once_and_sent_if_the_study_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{tmp_path}/store"
    leave_in_spool(url)
    shutil.copytree(url, f"{tmp_path}/backup", symlinks=True)
    with contextlib.closing(hopaas_p2p.open_storage(url)) as storage:
        storage.delete_study(storage.get_study_id_from_name("s"))
    caplog.clear()
    for _ in range(2):
        with contextlib.closing(hopaas_p2p.open_study(url, "other", space=SPACE)) as study:
            study.tell(study.ask(), 0.5)
    ((path, _),) = spool.waiting()
    (mentioned,) = [message for message in caplog.messages if "stays in the spool" in message]
    assert mentioned.startswith(f"{path} was not sent and stays in the spool: the study 's' was deleted. ")

    take_part(f"{tmp_path}/backup")

    assert not list(spool.waiting())
    assert values(f"{tmp_path}/backup") == [0.25]


def test_a_copy_of_the_store_takes_no_result_away_from_it(tmp_path: Path) -> None:
    leave_in_spool(f"{tmp_path}/store")
    shutil.copytree(f"{tmp_path}/store", f"{tmp_path}/copy", symlinks=True)
    take_part(f"{tmp_path}/copy")
    assert values(f"{tmp_path}/copy") == [0.25]
    assert not list(spool.waiting())
    take_part(f"{tmp_path}/store")
    assert values(f"{tmp_path}/store") == [0.25]
    assert not [path for place in spool.directories() for path in place.glob("*.sent")]


def test_a_result_that_was_sent_by_hand_to_a_copy_is_kept_for_its_own_store(tmp_path: Path) -> None:
    leave_in_spool(f"{tmp_path}/store")
    shutil.copytree(f"{tmp_path}/store", f"{tmp_path}/copy", symlinks=True)
    cli("admin", "spool", "send", "--store", f"{tmp_path}/copy")
    take_part(f"{tmp_path}/store")
    assert values(f"{tmp_path}/store") == [0.25]


def test_what_was_sent_under_another_url_is_kept_for_a_month(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_in_spool(f"{tmp_path}/store")
    (tmp_path / "mounted-here").symlink_to(tmp_path / "store")
    take_part(f"{tmp_path}/mounted-here")
    (kept,) = [path for place in spool.directories() for path in place.glob("*.sent")]
    assert not list(spool.waiting(f"file://{tmp_path}/mounted-here"))
    assert kept.exists()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 31 * 86_400)
    assert not list(spool.waiting(f"file://{tmp_path}/mounted-here"))
    assert not kept.exists()


def test_what_was_sent_elsewhere_raises_no_alarm_where_its_own_store_has_lost_the_study(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave_in_spool(f"{tmp_path}/store")
    (tmp_path / "mounted-here").symlink_to(tmp_path / "store")
    take_part(f"{tmp_path}/mounted-here")
    shutil.rmtree(tmp_path / "store" / "v1")
    with contextlib.closing(hopaas_p2p.open_storage(f"{tmp_path}/elsewhere")) as storage:
        hopaas_p2p.open_study(storage, "other", space=SPACE).close()
    (tmp_path / "elsewhere" / "v1").rename(tmp_path / "store" / "v1")
    with contextlib.closing(hopaas_p2p.open_study(f"{tmp_path}/store", "other", space=SPACE)) as study:
        study.tell(study.ask(), 0.5)
        tick(study.storage.peer)
    assert "stays in the spool" not in caplog.text
    assert not list(spool.waiting()), "it does not wait: it was sent"
    assert len(list(spool.waiting(f"file://{tmp_path}/store"))) == 1, "and is offered again within its month"


def test_the_month_begins_when_it_was_sent_however_old_the_result_is() -> None:
    path, _ = keep([], store="file:///true", study="u", name="s")  # of 1970
    assert path is not None
    spool.sent(path, spool.read(path), "file:///copy")
    assert not list(spool.waiting("file:///copy"))
    assert len(list(spool.waiting("file:///true"))) == 1


def test_what_is_for_another_store_stays(tmp_path: Path) -> None:
    leave_in_spool(f"{tmp_path}/store")
    take_part(f"{tmp_path}/another")
    assert len(list(spool.waiting())) == 1
    sent = cli("admin", "spool", "send", "--store", f"{tmp_path}/another")
    assert sent.stderr == "No results are waiting to be sent.\n"
    assert len(list(spool.waiting())) == 1


def test_a_store_in_the_place_of_another_does_not_swallow_its_results(tmp_path: Path) -> None:
    leave_in_spool(f"{tmp_path}/store")
    (tmp_path / "store").rename(tmp_path / "away")
    take_part(f"{tmp_path}/store")
    sent = cli("admin", "spool", "send", check=False)
    assert "another store was here before" in sent.stderr
    assert sent.returncode != 0
    assert len(list(spool.waiting())) == 1

    assert cli("admin", "spool", "send", HOPAAS_STORE=f"{tmp_path}/away").stderr.startswith("Sent 1 file")
    assert values(f"{tmp_path}/away") == [0.25]


def test_an_older_copy_of_the_store_does_not_swallow_a_result_that_it_cannot_place(tmp_path: Path) -> None:
    store = tmp_path / "store"
    hopaas_p2p.open_study(store, "s", space=SPACE).close()
    shutil.copytree(store, tmp_path / "copy", symlinks=True)
    leave_in_spool(str(store))
    store.rename(tmp_path / "newer")
    (tmp_path / "copy").rename(store)
    for others in (0, 1):  # the number is free, and then it is another's
        with contextlib.closing(hopaas_p2p.open_study(store, "s", space=SPACE)) as study:
            tick(study.storage.peer)
            assert len(list(spool.waiting())) == 1
            sent = cli("admin", "spool", "send", check=False)
            assert sent.returncode != 0
            assert "does not have trial #0 as its peer knew it" in sent.stderr
            if not others:
                study.tell(study.ask(), 0.75)
    assert values(str(store)) == [0.75]
    assert cli("admin", "spool", "send", HOPAAS_STORE=f"{tmp_path}/newer").stderr.startswith("Sent 1 file")
    assert values(f"{tmp_path}/newer") == [0.25]


def test_a_store_that_was_moved_gets_it_by_its_new_url(tmp_path: Path) -> None:
    leave_in_spool(f"{tmp_path}/store")
    (tmp_path / "store").rename(tmp_path / "moved")
    assert cli("admin", "spool", "send", check=False).returncode == 78
    assert cli("admin", "spool", "send", HOPAAS_STORE=f"{tmp_path}/moved").stderr == "Sent 1 file.\n"
    assert values(f"{tmp_path}/moved") == [0.25]


def test_another_machine_sends_an_exported_spool_and_each_result_counts_once(tmp_path: Path) -> None:
    leave_in_spool(f"{tmp_path}/store")
    written = cli("admin", "spool", "export", "results.spool", cwd=tmp_path)
    assert written.stderr == "Wrote the results of 1 trial to results.spool.\n"
    file = tmp_path / "results.spool"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    elsewhere = {"XDG_STATE_HOME": f"{tmp_path}/elsewhere", "TMPDIR": f"{tmp_path}"}
    (tmp_path / "there").symlink_to(tmp_path / "store")
    for _ in range(2):
        sent = cli("admin", "spool", "send", str(file), "--store", f"{tmp_path}/there", **elsewhere)
        assert sent.stderr == "Sent 1 file.\n"
    assert cli("admin", "spool", "send").stderr == "Sent 1 file.\n", "and here, where it still waits"
    assert values(f"{tmp_path}/store") == [0.25]
    file.write_bytes(file.read_bytes()[:-1])
    assert cli("admin", "spool", "send", str(file), check=False).returncode == 2


def test_an_exported_result_that_no_store_takes_says_so(tmp_path: Path) -> None:
    leave_in_spool(f"{tmp_path}/store")
    cli("admin", "spool", "export", "results.spool", cwd=tmp_path)
    hopaas_p2p.open_study(f"{tmp_path}/another", "s", space=SPACE).close()
    sent = cli("admin", "spool", "send", "results.spool", "--store", "another", cwd=tmp_path, check=False)
    assert sent.returncode == 69
    assert "No store that can be reached has the study 's'" in sent.stderr


def test_a_password_in_the_url_is_no_obstacle(place: Place) -> None:
    ann = place.person("ann")
    study = hopaas_p2p.open_study(place.storage(ann, patience=0.0), "s", space=SPACE)
    trial = study.ask()
    study.storage.flush()
    peer = study.storage.peer
    peer.jobs.stop(within=10.0)
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_: object, **__: object) -> None:
            raise StoreUnreachable

        patch.setattr(PostgresStore, "call", refuse)
        study.tell(trial, 0.25)
    ((_, kept),) = spool.waiting()
    assert place.server.password not in kept.store
    assert cli("admin", "spool", "send", HOPAAS_STORE=ann).stderr == "Sent 1 file.\n"
    again = hopaas_p2p.open_study(place.storage(ann), "s", create=False)
    assert [one.value for one in again.trials] == [0.25]


def tell_twice(tmp_path: Path) -> tuple[hopaas_p2p.Study, hopaas_p2p.Study]:
    """One trial is told two values by two peers while the store is away."""
    first = hopaas_p2p.open_study(hopaas_p2p.open_storage(f"{tmp_path}/store", patience=0.0), "s", space=SPACE)
    trial = first.ask()
    first.storage.flush()
    second = pickle.loads(pickle.dumps(first))
    assert len(second.trials) == 1
    with store_away():
        first.tell(trial, 0.25)
        second.tell(trial.number, 0.75)
        for one in (first, second):
            one.storage.peer.jobs.stop(within=10.0)
    assert len(list(spool.waiting())) == 2
    return first, second


NOT_COUNTED = "the result 0.75 of trial #0 was not counted: trial #0 is already COMPLETE with 0.25"


def test_of_two_results_of_a_trial_that_were_kept_the_later_one_says_that_it_was_not_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = tell_twice(tmp_path)
    first.storage.flush()
    assert "not counted" not in caplog.text
    second.storage.flush()
    assert [one.getMessage() for one in caplog.records if "not counted" in one.getMessage()] == [NOT_COUNTED]
    assert values(f"{tmp_path}/store") == [0.25]
    assert not list(spool.waiting())
    first.close()
    second.close()


def test_spool_send_says_which_results_were_not_counted(tmp_path: Path) -> None:
    for one in tell_twice(tmp_path):
        with store_away():
            one.close()
    cli("admin", "spool", "export", f"{tmp_path}/file")
    sent = json.loads(cli("admin", "spool", "send", "--json").stdout)
    assert [one["why"] for one in sent["uncounted"]] == [NOT_COUNTED]
    assert len(sent["sent"]) == 2
    assert values(f"{tmp_path}/store") == [0.25]
    again = cli("admin", "spool", "send", f"{tmp_path}/file").stderr
    assert again == f"Sent 2 files.\n{tmp_path}/file: {NOT_COUNTED}\n", "and each time that it is sent"


def test_a_kept_result_of_too_many_values_is_not_counted_for_that_reason(tmp_path: Path) -> None:
    with contextlib.closing(hopaas_p2p.open_study(f"{tmp_path}/store", "s", space=SPACE)) as study:
        ticket = ticket_of(study, study.ask().number)
        (tmp_path / "store").rename(tmp_path / "away")
        with pytest.raises(ConfigurationError), carry(ticket, patience=0.0, end=ending(ticket, [1.0, 2.0])):
            pass  # how many values the study takes cannot be looked up
        (tmp_path / "away").rename(tmp_path / "store")
        ((_, spooled),) = spool.waiting()
        found = study.storage.peer.spool.send(spooled, study.storage.peer.logs, writer=study.storage.peer.uuid)
    assert found == ["the result 1.0, 2.0 of trial #0 was not counted: 1 value expected, got 2"]


def test_the_peer_that_sends_the_spool_of_another_says_which_results_were_not_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for one in tell_twice(tmp_path):
        with store_away():
            one.close()
    with contextlib.closing(hopaas_p2p.open_study(f"{tmp_path}/store", "s")) as study:
        tick(study.storage.peer)
        assert [trial.value for trial in study.trials] == [0.25]
    assert [one.getMessage() for one in caplog.records if "not counted" in one.getMessage()] == [f"s: {NOT_COUNTED}"]
