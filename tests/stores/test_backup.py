"""Backups of every kind of store, and the way back."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psycopg2.extensions
import pytest

import hopaas_p2p
from hopaas_p2p import access
from hopaas_p2p.core.catalog import Catalog
from hopaas_p2p.errors import (
    BrokenChain,
    ConfigurationError,
    Denied,
    InvalidInput,
    StoreCorrupt,
    StoreUnreachable,
    StudyDeleted,
)
from hopaas_p2p.moving import backup as backups
from hopaas_p2p.open import open_store
from hopaas_p2p.stores.base import Beat, Entry, read_all
from hopaas_p2p.stores.postgres import schema
from hopaas_p2p.stores.postgres.store import PostgresStore
from hopaas_p2p.testing.commits import chained, sealed, sum_of
from tests.support.postgres import Server
from tests.support.postgres_fixtures import OWNER
from tests.support.postgres_people import Place
from tests.support.processes import cli, until

SPACE = {"x": hopaas_p2p.Float(0, 1)}


def filled(url: str, name: str = "s", trials: int = 4) -> None:
    """A study with some trials, one of which has a file and one a checkpoint."""
    with contextlib.closing(hopaas_p2p.open_study(url, name, space=SPACE)) as study:
        for number in range(trials):
            trial = study.ask()
            trial.report(0.5, 1)
            if number == 0:
                trial.upload(Path(__file__))
                trial.checkpoint(b"weights", step=1)
            study.tell(trial, trial.params["x"])


def logs(url: str) -> dict[str, list[object]]:
    """Every commit of every study that the store lists, with its stamps."""
    store, catalog = open_store(url, create=False), Catalog()
    catalog.replay(read_all(store.catalog()))
    everything = {one.name: list[object](read_all(store.log(one.uuid))) for one in catalog.by_id.values()}
    store.close()
    return everything


def back_up(url: str, file: Path, **options: bool) -> backups.Manifest:
    store = open_store(url, create=False)
    try:
        return backups.back_up(store, file, **options)
    finally:
        store.close()


def restore(file: Path, url: str, watch: Callable[[float], None] = lambda _: None) -> bool:
    backup, store = backups.read(file), open_store(url)
    try:
        return backups.restore(backup, store, watch=watch)
    finally:
        backup.close()
        store.close()


def test_a_restored_directory_replays_to_the_same_digest_and_has_its_files(tmp_path: Path) -> None:
    old, new, file = f"{tmp_path}/old", f"{tmp_path}/new", tmp_path / "store.backup"
    filled(old)
    filled(old, "other", trials=300)  # more commits than one pack holds
    manifest = back_up(old, file)
    assert (manifest.files, manifest.files_left_out, manifest.left_out) == (4, "", {})
    restore(file, new)
    assert sorted(one.trials for one in manifest.studies) == [4, 300]
    assert logs(new) == logs(old)
    with contextlib.closing(hopaas_p2p.open_study(new, "s", create=False)) as study:
        (artifact,) = study.artifacts().list(0)
        assert study.artifacts().get(artifact, tmp_path / "copy").read_bytes() == Path(__file__).read_bytes()
        study.optimize(lambda trial: trial.params["x"], n_trials=1)  # work goes on
        assert len(study.state.trials) == 5
    assert restore_again(file, new)


def test_users_tokens_and_grants_of_a_directory_are_in_its_backup(tmp_path: Path) -> None:
    old, new, file = f"{tmp_path}/old", f"{tmp_path}/new", tmp_path / "store.backup"
    filled(old)
    access.add_user(old, "ann")
    access.create_token(old, "ann")
    access.grant(old, "s", "ann", "owner")
    back_up(old, file)
    restore(file, new)
    assert access.users(new) == access.users(old)
    assert access.grants(new, "s") == access.grants(old, "s")
    assert len(access.tokens(new)) == 1
    assert "accepts 1 restored token" in cli("admin", "restore", str(file), f"{tmp_path}/another").stderr


def restore_again(file: Path, url: str) -> bool:
    """Whether a store in which the work has gone on is refused."""
    with pytest.raises(ConfigurationError, match="undo commits that others have seen"):
        restore(file, url)
    return True


def test_a_backup_taken_while_peers_work_is_consistent(tmp_path: Path) -> None:
    old, file = f"{tmp_path}/old", tmp_path / "store.backup"
    filled(old)
    over = threading.Event()

    def work() -> None:
        count = 0
        while not over.is_set():
            filled(old, f"study{count}", trials=2)
            count += 1

    worker = threading.Thread(target=work)
    worker.start()
    try:
        until(lambda: len(logs(old)) > 2)
        manifest = back_up(old, file)
    finally:
        over.set()
        worker.join()
    restore(file, f"{tmp_path}/new")
    before, after = logs(old), logs(f"{tmp_path}/new")
    assert {one.name for one in manifest.studies} == after.keys()
    assert all(before[name][: len(entries)] == entries for name, entries in after.items())


def test_a_study_that_is_deleted_and_made_anew_meanwhile_is_in_a_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, write = str(tmp_path / "store"), backups._write_study
    filled(url, "s", trials=2)

    def written(*args: Any) -> backups.StudyBackup:
        monkeypatch.setattr(backups, "_write_study", write)
        with contextlib.closing(hopaas_p2p.open_storage(url)) as storage:
            storage.delete_study(storage.get_study_id_from_name("s"))
        filled(url, "s", trials=3)
        raise StudyDeleted("it is gone")

    monkeypatch.setattr(backups, "_write_study", written)
    manifest = back_up(url, tmp_path / "file")
    assert [(one.name, one.trials) for one in manifest.studies] == [("s", 3)]
    assert manifest.left_out == {}


def test_an_interrupted_restore_goes_on(tmp_path: Path) -> None:
    old, new, file = f"{tmp_path}/old", f"{tmp_path}/new", tmp_path / "store.backup"
    filled(old, trials=300)
    back_up(old, file)
    backup, store = backups.read(file), open_store(new)
    (one,) = backup.manifest.studies
    entries = list(backup.entries(f"study/{one.uuid}"))
    store.log(one.uuid).restore(None, entries[:280])  # type: ignore[attr-defined]
    backup.close()
    store.close()
    assert not restore(file, new)
    assert logs(new) == logs(old)
    assert restore(file, new)


def test_of_two_restores_at_once_the_one_that_fails_leaves_no_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, files = f"{tmp_path}/new", [tmp_path / "a.backup", tmp_path / "b.backup"]
    for file in files:
        filled(str(file.with_suffix("")), file.stem)
    access.add_user(str(tmp_path / "a"), "mallory")
    for file in files:
        back_up(str(file.with_suffix("")), file)

    def meanwhile(*_: object) -> None:
        monkeypatch.undo()
        restore(files[1], new)

    monkeypatch.setattr(backups, "_check_nobody_lives", meanwhile)
    with pytest.raises(StoreCorrupt, match="nothing was replaced"):
        restore(files[0], new)
    assert access.users(new) == []
    assert restore(files[1], new)


def test_a_restore_refuses_a_store_in_which_peers_are_alive(tmp_path: Path) -> None:
    old, new, file = f"{tmp_path}/old", f"{tmp_path}/new", tmp_path / "store.backup"
    with contextlib.closing(hopaas_p2p.open_study(old, "s", space=SPACE)) as study:
        study.tell(study.ask(), 1.0)
        peer = study.storage.peer.uuid
        back_up(old, file)
    store = open_store(new)
    store.beat(Beat(peer, "1"))
    with pytest.raises(ConfigurationError, match="1 live peer in"):
        restore(file, new, watch=lambda _: store.beat(Beat(peer, "2")))
    assert list(read_all(store.catalog())) == []
    restore(file, new)  # it has fallen silent
    assert restore(file, new, watch=lambda _: pytest.fail("where nothing is left to restore, nobody is waited for"))


def test_a_damaged_backup_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    old, new, file = f"{tmp_path}/old", tmp_path / "new", tmp_path / "store.backup"
    filled(old)
    back_up(old, file)
    whole = file.read_bytes()
    for broken in (whole[8:], whole[: len(whole) // 2], whole[:200] + b"#" + whole[201:], b"", b"no backup"):
        file.write_bytes(broken)
        with pytest.raises(InvalidInput) as refused:
            backups.read(file)
        assert str(refused.value).count("use another one") <= 1
    assert not new.exists()


def test_an_archive_that_claims_a_version_beyond_all_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "store.backup"
    filled(f"{tmp_path}/old")
    back_up(f"{tmp_path}/old", file)
    whole = bytearray(file.read_bytes())
    needed = whole.index(b"PK\x01\x02") + 6  # in the first entry of the archive's list
    whole[needed : needed + 2] = b"\xff\xff"
    file.write_bytes(whole)
    with pytest.raises(InvalidInput, match="is neither a complete backup"):
        backups.read(file)


def test_another_archive_is_no_damaged_backup(tmp_path: Path) -> None:
    file = tmp_path / "photos.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("photo", "x")
    with pytest.raises(InvalidInput, match=r"^\S+ is not a backup that this version can read$"):
        backups.read(file)


def test_a_backup_that_cannot_be_read_for_a_moment_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: zipfile.ZipFile) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    filled(f"{tmp_path}/old")
    back_up(f"{tmp_path}/old", tmp_path / "store.backup")
    monkeypatch.setattr(zipfile.ZipFile, "testzip", fail)
    with pytest.raises(StoreUnreachable, match="cannot be used at the moment"):
        backups.read(tmp_path / "store.backup")


def test_a_backup_is_overwritten_only_on_request(tmp_path: Path) -> None:
    filled(f"{tmp_path}/old")
    (tmp_path / "store.backup").write_bytes(b"of another store")
    refused = cli("admin", "backup", "old", "store.backup", cwd=tmp_path, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "store.backup already exists. Use --force" in refused.stderr
    assert (tmp_path / "store.backup").read_bytes() == b"of another store"
    cli("admin", "backup", "old", "store.backup", "--force", cwd=tmp_path)
    assert backups.read(tmp_path / "store.backup").manifest.studies


def test_the_commands_say_what_is_in_the_file(tmp_path: Path) -> None:
    filled(f"{tmp_path}/old")
    done = cli("admin", "backup", "old", "store.backup", cwd=tmp_path)
    assert "Backed up 1 study, 2 files to store.backup" in done.stderr
    assert (tmp_path / "store.backup").stat().st_mode & 0o777 == 0o600
    assert (
        "Restored 1 study with 4 trials and 2 files"
        in cli("admin", "restore", "store.backup", "new", cwd=tmp_path).stderr
    )
    assert len(json.loads(cli("trial", "list", "--study", "s", "--store", "new", "--json", cwd=tmp_path).stdout)) == 4
    without = cli("admin", "backup", "old", "lean.backup", "--no-files", cwd=tmp_path)
    assert "files and checkpoints are not in the backup: left out by --no-files" in without.stderr
    assert cli("admin", "restore", "lean.backup", "new", cwd=tmp_path, check=False).returncode == 0


def test_on_postgres_a_user_backs_up_what_is_shared_and_an_administrator_restores_it(
    place: Place, new_database: Callable[[Server], str], tmp_path: Path
) -> None:
    ann, bob, file = place.person("ann"), place.person("bob"), tmp_path / "store.backup"
    place.study(ann)
    place.study(bob, "private")
    manifest = back_up(ann, file)
    assert ([one.name for one in manifest.studies], list(manifest.left_out)) == (["s"], ["private"])
    target = place.server.url(new_database(place.server), user=OWNER)
    access.initialise(target)
    back_up(place.admin, file)
    restore(file, target)
    restored = logs(target)
    assert restored == logs(place.admin)
    assert {entry.stamp.author for entry in restored["s"]} == {"ann"}  # type: ignore[attr-defined]
    restore(file, f"{tmp_path}/directory")
    assert logs(f"{tmp_path}/directory") == restored
    study = optuna.load_study(study_name="s", storage=place.storage(target))
    study.tell(study.ask(), 1.0)
    with pytest.raises(ConfigurationError, match="undo commits that others have seen"):
        restore(file, target)


def test_on_postgres_no_statement_of_a_restore_is_much_larger_than_a_commit(place: Place) -> None:
    sizes: list[int] = []

    class Cursor(psycopg2.extensions.cursor):
        def execute(self, *arguments: Any) -> None:
            super().execute(*arguments)
            sizes.append(len(self.query))

    entries = [Entry(lsn, b"%d" % lsn + bytes(1 << 16)) for lsn in range(1, 21)]
    with contextlib.closing(PostgresStore(place.admin)) as store:
        with store.transaction() as connection:
            connection.cursor_factory = Cursor
            schema.restore(connection, "restored", entries)
        restored = list(read_all(store.log("restored")))

    assert [(one.lsn, one.payload) for one in restored] == [(one.lsn, one.payload) for one in entries]
    assert (1 << 16) < max(sizes) < 3 * (1 << 16)


def test_on_postgres_commits_that_were_backed_up_without_a_sum_get_the_one_that_follows(place: Place) -> None:
    entries = [Entry(lsn, sealed(b"%d" % lsn)) for lsn in (1, 2, 3)]
    with contextlib.closing(PostgresStore(place.admin)) as store:
        log = store.log("restored")
        log.restore(None, entries)
        assert [one.before for one in read_all(log)] == [sum_of(entries[:count]) for count in range(3)]
        with pytest.raises(BrokenChain):
            chained(log, "false", since=3, total=sum_of(entries) + 1)
        assert chained(log, "next", since=3, total=sum_of(entries)).before == sum_of(entries)


def test_a_user_who_is_no_administrator_cannot_restore(place: Place, tmp_path: Path) -> None:
    ann, file = place.person("ann"), tmp_path / "store.backup"
    filled(f"{tmp_path}/old")
    back_up(f"{tmp_path}/old", file)
    with pytest.raises(Denied):
        restore(file, ann)


def test_a_directory_moves_into_a_database_or_a_bucket_as_it_is(postgres_url: str, s3_url: str, tmp_path: Path) -> None:
    old, file = f"{tmp_path}/old", tmp_path / "store.backup"
    filled(old)
    back_up(old, file)
    for target in (postgres_url, s3_url):
        restore(file, target)
        assert logs(target) == logs(old)
        with contextlib.closing(hopaas_p2p.open_study(target, "s", create=False)) as study:
            study.tell(study.ask(), 1.0)
    back_up(s3_url, file)
    restore(file, f"{tmp_path}/back")
    assert logs(f"{tmp_path}/back") == logs(s3_url)
