"""A bucket that is away when a process ends: what it had acknowledged is compared with the log later."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import hopaas_p2p
from hopaas_p2p import spool
from hopaas_p2p.moving import rescue
from hopaas_p2p.stores.s3.store import S3Store
from hopaas_p2p.study import Study
from tests.support.processes import cli
from tests.support.s3_imitation import Imitation
from tests.support.s3_server import S3Server
from tests.support.ticking import tick

SPACE = {"x": hopaas_p2p.Float(0, 1)}


@pytest.fixture(autouse=True)
def own_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def begun(url: str, count: int = 3) -> Study:
    """A study in which so many trials were told."""
    study = hopaas_p2p.open_study(hopaas_p2p.open_storage(url, patience=0.0), "s", space=SPACE)
    for _, value in RESULTS[:count]:
        study.tell(study.ask(), value)
    return study


def end_without(server: Imitation, study: Study) -> None:
    """The process ends while the bucket answers nothing."""
    server.asked = lambda _: 503
    study.close()
    server.asked = None


@contextlib.contextmanager
def another(url: str) -> Iterator[Study]:
    """A process of another user, who has another spool."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "directories", list)
        with contextlib.closing(hopaas_p2p.open_study(url, "s", space=SPACE)) as study:
            yield study


def take_part(url: str) -> None:
    """A process of the same user does what it does now and then."""
    with contextlib.closing(hopaas_p2p.open_study(url, "s", space=SPACE)) as study:
        tick(study.storage.peer)


def told(url: str) -> list[tuple[int, float | None]]:
    with another(url) as study:
        return [(trial.number, trial.value) for trial in study.trials]


def lose(url: str, uuid: str, *lsns: int) -> None:
    """The bucket forgets these commits, as one does that was restored from a copy."""
    store = S3Store(url, create=False)
    store.objects.delete([f"study/{uuid}/log/{lsn:020d}" for lsn in lsns])
    store.close()


RESULTS = [(0, 1.0), (1, 2.0), (2, 3.0)]


@pytest.mark.path
def test_results_that_a_real_server_took_before_it_was_killed_are_in_the_spool_and_count_once(
    mortal_s3_server: S3Server,
) -> None:
    url = mortal_s3_server.url(mortal_s3_server.new_prefix())
    study = begun(url)
    mortal_s3_server.kill()
    study.close()
    ((_, kept),) = spool.waiting()
    assert kept.trials == [0, 1, 2]
    mortal_s3_server.start()
    assert cli("admin", "spool", "send").stderr == "Sent 1 file.\n"
    assert not list(spool.waiting())
    assert told(url) == RESULTS


def test_a_process_that_takes_part_compares_them_with_the_log_and_appends_nothing(server: Imitation) -> None:
    url = server.url("store")
    study = begun(url)
    uuid, head = study.handle.uuid, study.state.lsn
    end_without(server, study)
    take_part(url)
    with another(url) as other:
        assert other.state.lsn == head
    assert not [*spool.waiting(), *spool.histories(uuid)]
    assert told(url) == RESULTS


@pytest.mark.parametrize("count", [1, 2, 4])
def test_what_a_bucket_loses_while_its_writer_runs_is_put_back_at_the_end(server: Imitation, count: int) -> None:
    url = server.url("store")
    study = begun(url)
    uuid, head = study.handle.uuid, study.state.lsn
    lose(url, uuid, *range(head - count + 1, head + 1))
    study.close()
    assert not [*spool.waiting(), *spool.histories(uuid)]
    assert told(url) == RESULTS
    with another(url) as other:
        other.tell(other.ask(), 4.0)
    assert told(url) == [*RESULTS, (3, 4.0)]


def test_the_writer_hears_at_the_end_of_what_took_the_place_of_a_lost_commit(server: Imitation) -> None:
    url = server.url("store")
    study = begun(url)
    uuid, head = study.handle.uuid, study.state.lsn
    lose(url, uuid, head)
    with another(url) as other:
        other.tell(other.ask(), 4.0)
    study.close()
    assert len(list(spool.histories(uuid))) == 1, "for a rescue"


def test_of_a_study_that_was_deleted_and_cleaned_up_nothing_is_put_back(server: Imitation) -> None:
    url = server.url("store")
    study = begun(url)
    root = f"study/{study.handle.uuid}/"
    with another(url) as other:
        other.storage.delete_study(other.study_id)
    store = S3Store(url, create=False)
    store.objects.delete([key for key in store.objects.listed(root) if "/boundary/" not in key])
    left = store.objects.listed(root)
    study.close()
    assert store.objects.listed(root) == left
    assert not list(spool.waiting())
    store.close()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_last_commits_that_a_bucket_has_lost_are_appended_again(server: Imitation, count: int) -> None:
    url = server.url("store")
    study = begun(url)
    uuid, head = study.handle.uuid, study.state.lsn
    end_without(server, study)
    lose(url, uuid, *range(head - count + 1, head + 1))
    for _ in range(2):
        take_part(url)
    assert not [*spool.waiting(), *spool.histories(uuid)]
    assert told(url) == RESULTS


def test_peers_that_append_them_at_the_same_moment_do_not_take_each_others_places(server: Imitation) -> None:
    url = server.url("store")
    study = begun(url)
    uuid, head = study.handle.uuid, study.state.lsn
    end_without(server, study)
    lose(url, uuid, *range(head - 3, head + 1))
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(take_part, url) for _ in range(4)]:
            done.result()
    take_part(url)
    assert not [*spool.waiting(), *spool.histories(uuid)]
    assert told(url) == RESULTS


@pytest.mark.parametrize("count", [1, 3])
def test_a_result_is_appended_where_the_log_has_gone_on_without_it(server: Imitation, count: int) -> None:
    """Its trial is still its owner's there, and the log knows no later commit of that owner."""
    url = server.url("store")
    study = begun(url, count)
    uuid, head = study.handle.uuid, study.state.lsn
    end_without(server, study)
    lose(url, uuid, head)
    with another(url) as other:
        other.tell(other.ask(), 4.0)
    take_part(url)
    assert not [*spool.waiting(), *spool.histories(uuid)]
    assert told(url) == [*RESULTS[:count], (count, 4.0)]


@pytest.mark.parametrize("sent_by", ["a process", "a command"])
def test_what_would_mean_something_else_in_the_log_is_kept_for_a_rescue(server: Imitation, sent_by: str) -> None:
    """Another peer has started a trial with the number of the lost one."""
    url = server.url("store")
    study = begun(url)
    uuid, head = study.handle.uuid, study.state.lsn
    end_without(server, study)
    lose(url, uuid, head - 1, head)
    with another(url) as other:
        other.tell(other.ask(), 4.0)
    if sent_by == "a process":
        take_part(url)
    else:
        sent = cli("admin", "spool", "send", check=False)
        assert sent.returncode
        assert "Of these commits, 2 are kept for a rescue" in sent.stderr
    assert not list(spool.waiting())
    assert len(list(spool.histories(uuid))) == 1
    assert told(url) == [(0, 1.0), (1, 2.0), (2, 4.0)]
    store = S3Store(url, create=False)
    found = rescue.rescue(store, uuid)
    store.close()
    assert found.study is not None
    assert sorted(one.values for one in found.study.trials.values() if one.values) == [(1.0,), (2.0,), (3.0,), (4.0,)]


def test_what_could_not_be_sent_is_in_one_file_with_what_could_not_be_confirmed(server: Imitation) -> None:
    """In the order in which they were said, whoever sends it."""
    url = server.url("store")
    study = begun(url)
    uuid, head = study.handle.uuid, study.state.lsn
    trial = study.ask()
    server.asked = lambda _: 503
    study.tell(trial, 4.0)
    study.close()
    server.asked = None
    ((_, kept),) = spool.waiting()
    assert kept.trials == [0, 1, 2, 3]
    lose(url, uuid, head, head + 1)
    take_part(url)
    assert not [*spool.waiting(), *spool.histories(uuid)]
    assert told(url) == [*RESULTS, (3, 4.0)]


def test_an_exported_file_is_compared_on_the_other_machine(server: Imitation, tmp_path: Path) -> None:
    url = server.url("store")
    study = begun(url)
    uuid, head = study.handle.uuid, study.state.lsn
    end_without(server, study)
    lose(url, uuid, head)
    cli("admin", "spool", "export", "results.spool", cwd=tmp_path)
    elsewhere = {"XDG_STATE_HOME": f"{tmp_path}/elsewhere"}
    for _ in range(2):
        sent = cli("admin", "spool", "send", "results.spool", "--store", url, cwd=tmp_path, **elsewhere)
        assert sent.stderr == "Sent 1 file.\n"
    assert told(url) == RESULTS
    assert cli("admin", "spool", "send").stderr == "Sent 1 file.\n", "and here, where it still waits"
    assert told(url) == RESULTS


def test_an_end_that_has_compared_everything_leaves_nothing(server: Imitation) -> None:
    begun(server.url("store")).close()
    assert not list(spool.waiting())
