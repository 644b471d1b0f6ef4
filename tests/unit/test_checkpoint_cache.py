"""Checkpoints near the jobs of a site: copies on its disk."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hopaas_p2p
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.files.artifacts import artifacts_of
from hopaas_p2p.runtime.checkpoint_cache import CheckpointCache, checkpoint_cache
from hopaas_p2p.runtime.settings import checkpoint_cache as configured

Cached = Callable[[], CheckpointCache]


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cached:
    """The cache of this site."""
    monkeypatch.setenv("HOPAAS_CHECKPOINT_CACHE", str(tmp_path / "scratch"))

    def found() -> CheckpointCache:
        cache = checkpoint_cache()
        assert cache is not None
        return cache

    return found


def _interrupted(store: Path) -> hopaas_p2p.Trial:
    """A trial that goes on from a checkpoint of an earlier attempt."""
    study = hopaas_p2p.open_study(store, "s", space={"x": hopaas_p2p.Float(0.0, 1.0)})
    with contextlib.suppress(KeyboardInterrupt), study.trial() as trial:
        trial.report(1.0, 3)
        trial.checkpoint(b"weights", step=3)
        raise KeyboardInterrupt
    return study.ask()


def _forget_files(trial: hopaas_p2p.Trial) -> None:
    artifacts = artifacts_of(trial.storage.peer.store)
    for checkpoint in trial.handle.state.trials[trial.number].checkpoints:
        artifacts.delete(checkpoint.key)


@pytest.mark.usefixtures("cached")
def test_a_checkpoint_of_this_site_is_resumed_from_its_own_disk(tmp_path: Path) -> None:
    trial = _interrupted(tmp_path / "store")
    _forget_files(trial)
    assert trial.resume is not None
    step, path = trial.resume
    assert (step, path.read_bytes()) == (3, b"weights")


def test_without_a_cache_no_copy_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOPAAS_CHECKPOINT_CACHE", raising=False)
    trial = _interrupted(tmp_path / "store")
    _forget_files(trial)
    assert trial.resume is None


def test_a_damaged_copy_is_replaced_by_what_the_store_has(tmp_path: Path, cached: Cached) -> None:
    trial = _interrupted(tmp_path / "store")
    (copy,) = cached().folder.iterdir()
    copy.write_bytes(b"rubbish")
    assert trial.resume is not None
    assert trial.resume[1].read_bytes() == b"weights"
    assert copy.read_bytes() == b"weights"


def test_the_oldest_copies_make_room(tmp_path: Path, cached: Cached) -> None:
    cache = cached()._replace(most=25)
    source = tmp_path / "source"
    source.write_bytes(b"0123456789")
    names = ["a" * 64, "b" * 64, "c" * 64]
    for age, name in enumerate(names):
        cache.keep(name, source)
        os.utime(cache.folder / name, (age, age))
        if age == 1:
            assert cache.fetch(names[0], tmp_path / "target")  # it was used last
    assert sorted(path.name for path in cache.folder.iterdir()) == [names[0], names[2]]
    source.write_bytes(bytes(26))
    cache.keep("d" * 64, source)  # larger than the cache: the others stay
    assert len(list(cache.folder.iterdir())) == 2


@pytest.fixture
def disk(cached: Cached, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes the disk of the cache has; others may fill it."""
    room, copy = [25], shutil.copyfile

    def copied(source: Path, target: Path) -> Path:
        if sum(path.stat().st_size for path in cached().folder.iterdir()) + source.stat().st_size > room[0]:
            raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", copied)
    return room


@pytest.mark.usefixtures("disk")
def test_the_oldest_copies_make_room_on_a_full_disk(tmp_path: Path, cached: Cached) -> None:
    cache, source = cached(), tmp_path / "source"
    source.write_bytes(b"0123456789")
    for age, name in enumerate(["a" * 64, "b" * 64, "c" * 64]):
        cache.keep(name, source)
        os.utime(cache.folder / name, (age, age))
    assert sorted(path.name for path in cache.folder.iterdir()) == ["b" * 64, "c" * 64]


def test_a_disk_that_others_have_filled_is_said_once(
    tmp_path: Path, cached: Cached, disk: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    cache, source, disk[0] = cached(), tmp_path / "source", 0
    source.write_bytes(b"0123456789")
    for name in ["a" * 64, "b" * 64]:
        cache.keep(name, source)
    assert list(cache.folder.iterdir()) == []
    assert caplog.text.count("No space left on device") == 1


@pytest.mark.parametrize("said", ["", "../elsewhere", "a" * 63, "A" * 64])
def test_a_record_that_names_no_sum_reads_nothing(tmp_path: Path, cached: Cached, said: str) -> None:
    cache = cached()
    (cache.folder.parent / "elsewhere").write_text("private")
    assert not cache.fetch(said, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_cache_that_others_may_have_written_to_is_not_used(cached: Cached, caplog: pytest.LogCaptureFixture) -> None:
    cached().folder.chmod(0o777)
    assert checkpoint_cache() is None
    assert "others may write to" in caplog.text


def test_a_cache_that_cannot_be_written_costs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOPAAS_CHECKPOINT_CACHE", str(tmp_path / "file" / "below"))
    trial = _interrupted(tmp_path / "store")
    assert trial.resume is not None
    assert "cannot be used" in caplog.text


def test_a_cache_in_a_home_that_does_not_exist_costs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOPAAS_CHECKPOINT_CACHE", "~nobody-has-this-name/scratch")
    trial = _interrupted(tmp_path / "store")
    assert trial.resume is not None
    assert "cannot be used" in caplog.text


def test_what_other_jobs_remove_while_room_is_made_keeps_no_copy_out(
    tmp_path: Path, cached: Cached, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cached()
    source = tmp_path / "source"
    source.write_bytes(b"weights")
    draft = cache.folder / ".draft-of-another-job"
    draft.touch()
    real = Path.lstat

    def renamed(path: Path) -> os.stat_result:
        if path.name == draft.name:
            draft.unlink()
        return real(path)

    monkeypatch.setattr(Path, "lstat", renamed)
    cache.keep("a" * 64, source)
    assert not draft.exists()
    assert [path.name for path in cache.folder.iterdir()] == ["a" * 64]
    assert not caplog.text


def test_a_copy_that_another_job_removes_once_it_was_read_is_used(
    tmp_path: Path, cached: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = _interrupted(tmp_path / "store")
    _forget_files(trial)
    (copy,) = cached().folder.iterdir()
    real = os.utime

    def removed(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name == copy.name:
            copy.unlink()
        real(path, *arguments, **options)

    monkeypatch.setattr(os, "utime", removed)
    assert trial.resume is not None
    assert not copy.exists()


def test_a_bound_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="HOPAAS_CHECKPOINT_CACHE_MB is a whole number"):
        configured({"HOPAAS_CHECKPOINT_CACHE": "/scratch", "HOPAAS_CHECKPOINT_CACHE_MB": "20 GB"})
