"""Users and grants on a real server: who may do what in a study, and who did it."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import psycopg2
import pytest

import hopaas_p2p
from hopaas_p2p import access, spool
from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, StudyControl
from hopaas_p2p.errors import ConfigurationError, Denied, InvalidInput, NoSuchStudy
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.testing.commits import outgoing
from tests.support.postgres_people import Place
from tests.support.processes import cli

optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_the_creator_owns_a_study_and_every_commit_names_its_author(place: Place) -> None:
    ann = place.person("ann")
    place.study(ann)
    assert [(g.user, g.role) for g in access.grants(ann, "s")] == [("ann", "owner")]
    rows = place.server.execute("SELECT DISTINCT author, role, at > 0 FROM hopaas.commits", database="store")
    in_catalog = f"owner:{place.uuid()}"
    assert sorted(rows) == [("ann", "owner", True), ("ann", in_catalog, True)]


def test_the_audit_lists_who_did_what_and_when_by_the_servers_word(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    monkeypatch.setenv("USER", "somebody-else")
    work = optuna.load_study(study_name="s", storage=place.storage(bob))
    work.tell(work.ask(), 1.0)
    place.store(bob).log(place.uuid()).exchange(_stop("forged"), 0)
    audited = cli("study", "show", "--audit", "--json", "--study", "s", HOPAAS_STORE=ann)
    lines = json.loads(audited.stdout)
    assert [line["lsn"] for line in lines] == sorted(line["lsn"] for line in lines)
    assert {line["clock"] for line in lines} == {"store"}
    authors = {line["lsn"]: line["author"] for line in lines}
    assert set(authors.values()) == {"ann", "bob"}
    finished = [(line["author"], line["trial"]) for line in lines if line["kind"] == "trial.finish"]
    assert finished == [("ann", 0), ("ann", 1), ("bob", 2)]
    (stop,) = [line for line in lines if line["kind"] == "study.control"]
    assert (stop["author"], stop["refused"]) == ("bob", "role"), "a worker's word does not stop a study"
    table = cli("study", "show", "--audit", "--study", "s", HOPAAS_STORE=ann).stdout
    assert "bob" in table
    assert place.server.password not in table


def _stop(nonce: str) -> Outgoing:
    commit = Commit("forger", 1, "forger", 0, (StudyControl("stopped", None),))
    return Outgoing(nonce, codec.encode(commit))


def test_auto_learns_from_no_study_that_was_granted_unasked(place: Place) -> None:
    """A grant needs no consent, so whoever grants a study would choose what others' searches begin with."""
    ann, bob, space = place.person("ann"), place.person("bob"), {"x": hopaas_p2p.Float(0, 1)}
    for user, name in ((ann, "own"), (bob, "together"), (bob, "bobs")):
        hopaas_p2p.open_study(place.storage(user), name, space=space, budget=6).optimize(
            lambda trial: trial.params["x"]
        )
        access.grant(user, name, {ann: "bob", bob: "ann"}[user], "worker")
    together = hopaas_p2p.open_study(place.storage(ann), "together")
    together.set_user_attr("reviewed", True)
    new = hopaas_p2p.open_study(place.storage(ann), "new", space=space, learn_from="auto")
    assert [one.name for one in new.learned] == ["together", "own"]


def test_a_worker_works_and_a_viewer_looks(place: Place) -> None:
    ann, bob, eve = place.person("ann"), place.person("bob"), place.person("eve")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    access.grant(ann, "s", "eve", "viewer")
    work = optuna.load_study(study_name="s", storage=place.storage(bob))
    work.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    with pytest.raises(Denied, match="hopaas-p2p admin grant s USER owner"):
        hopaas_p2p.open_study(place.storage(bob), "s", create=False).stop_all()
    look = optuna.load_study(study_name="s", storage=place.storage(eve))
    assert len(look.trials) == 4
    with pytest.raises(Denied, match="only a viewer"):
        look.ask()
    assert len(look.trials) == 4, "a viewer whose write was refused goes on reading"


def test_a_study_without_a_grant_can_neither_be_read_nor_written(place: Place) -> None:
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    uuid = place.uuid()
    log = place.store(bob).log(uuid)
    for attempt in (
        lambda: log.exchange(None, 0),
        lambda: log.exchange(outgoing("b"), 0),
        log.newest_snapshot,
        lambda: log.put_snapshot(1, b"forged"),
        log.destroy,
        lambda: access.grant(bob, "s", "bob", "owner"),
        lambda: access.revoke(bob, "s", "ann"),
        lambda: access.grants(bob, "s"),
        lambda: optuna.load_study(study_name="s", storage=place.storage(bob)).trials,
    ):
        with pytest.raises(Denied, match="no grant for this study"):
            attempt()
    assert place.storage(bob).get_all_studies() == [], "other people's studies are left out of a list"
    assert place.storage(bob).listings() == []
    assert [one.name for one in place.storage(ann).listings()] == ["s"]
    access.grant(ann, "s", "bob", "viewer")
    assert [one.name for one in place.storage(bob).listings()] == ["s"]


def test_a_viewer_changes_nothing(place: Place) -> None:
    ann, eve = place.person("ann"), place.person("eve")
    place.study(ann)
    access.grant(ann, "s", "eve", "viewer")
    log = place.store(eve).log(place.uuid())
    assert log.exchange(None, 0).entries
    for attempt in (
        lambda: log.exchange(outgoing("b"), 0),
        lambda: log.put_snapshot(1, b"forged"),
        log.destroy,
        lambda: access.grant(eve, "s", "eve", "worker"),
    ):
        with pytest.raises(Denied, match="only a viewer"):
            attempt()


def test_an_attribute_of_a_study_that_the_log_does_not_take_is_not_acknowledged(place: Place) -> None:
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    storage = place.storage(bob)
    study_id = storage.get_study_id_from_name("s")
    storage.set_study_user_attr(study_id, "note", "bob's")
    with pytest.raises(Denied, match="Only an owner of the study 's' may do that"):
        storage.set_study_system_attr(study_id, "hopaas:repeats", "allow")
    assert "hopaas:repeats" not in storage.get_study_system_attrs(study_id)


def test_only_an_owner_deletes_a_study(place: Place) -> None:
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    with pytest.raises(
        Denied, match=r"Only an owner of the study 's' may do that.* hopaas-p2p admin grant s USER owner$"
    ):
        optuna.delete_study(study_name="s", storage=place.storage(bob))
    assert len(optuna.load_study(study_name="s", storage=place.storage(ann)).trials) == 2
    access.grant(ann, "s", "bob", "owner")
    optuna.delete_study(study_name="s", storage=place.storage(bob))
    with pytest.raises(KeyError):
        optuna.load_study(study_name="s", storage=place.storage(ann))


def test_a_grant_ends_when_it_is_revoked(place: Place) -> None:
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    study = optuna.load_study(study_name="s", storage=place.storage(bob))
    trial = study.ask()
    access.revoke(ann, "s", "bob")
    with pytest.raises(Denied):
        study.tell(trial, 1.0)


def test_a_worker_that_is_made_a_viewer_under_its_trial_keeps_the_result_with_all_that_was_reported(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    storage = place.storage(bob, linger=3600.0)
    study = hopaas_p2p.open_study(storage, "s", create=False)
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.report(0.5, 1)
    access.grant(ann, "s", "bob", "viewer")
    with pytest.raises(Denied):
        storage.flush()  # as the scheduler does when reports have lingered
    assert not trial.should_prune()

    with pytest.raises(Denied, match=r"^trial 2: .*only a viewer.* is kept in .* hopaas-p2p admin spool send$"):
        study.tell(trial, 0.25)
    assert len(study.trials) == 3, "it goes on reading"
    ((path, kept),) = spool.waiting()
    assert kept.trials == [2]

    access.grant(ann, "s", "bob", "worker")
    peer = place.storage(bob).peer
    peer.spool.send(kept, peer.logs, writer=peer.uuid)
    path.unlink()
    told = optuna.load_study(study_name="s", storage=place.storage(ann)).trials[2]
    assert (told.value, told.intermediate_values, list(told.params)) == (0.25, {1: 0.5}, ["x"])


def test_a_study_keeps_an_owner(place: Place) -> None:
    ann = place.person("ann")
    place.person("bob")
    place.study(ann)
    for attempt in (lambda: access.revoke(ann, "s", "ann"), lambda: access.grant(ann, "s", "ann", "viewer")):
        with pytest.raises(
            Denied, match=r"somebody else an owner first. To do so: hopaas-p2p admin grant STUDY USER owner$"
        ):
            attempt()
    access.grant(ann, "s", "bob", "worker")
    with pytest.raises(Denied, match=r"bob is only a worker .* takes an owner. Ask an owner .* STUDY USER owner$"):
        access.grant(place.person("bob"), "s", "bob", "owner")
    access.grant(ann, "s", "bob", "owner")
    access.revoke(ann, "s", "ann")


def test_who_has_a_grant_sees_who_else_has_one_and_who_gave_it(place: Place) -> None:
    ann, bob, eve = (place.person(user) for user in ("ann", "bob", "eve"))
    place.study(ann)
    access.grant(ann, "s", "bob", "viewer")
    listed = json.loads(cli("admin", "grants", "s", "--json", HOPAAS_STORE=bob).stdout)
    assert [(one["user"], one["role"], one["granted_by"]) for one in listed] == [
        ("ann", "owner", "ann"),
        ("bob", "viewer", "ann"),
    ]
    assert "bob   viewer" in cli("admin", "grants", HOPAAS_STORE=place.admin, HOPAAS_STUDY="s").stdout
    denied = cli("admin", "grants", "s", check=False, HOPAAS_STORE=eve)
    assert (denied.returncode, denied.stdout) == (77, "")
    assert "hopaas-p2p admin grant STUDY USER worker" in denied.stderr


def test_grants_of_what_is_not_there_say_so(place: Place) -> None:
    ann = place.person("ann")
    place.study(ann)
    with pytest.raises(NoSuchStudy):
        access.grant(ann, "other", "ann", "worker")
    with pytest.raises(ConfigurationError, match="no user nobody-here"):
        access.grant(ann, "s", "nobody-here", "worker")
    with pytest.raises(ConfigurationError, match="has no grant"):
        access.revoke(ann, "s", "nobody-here")
    with pytest.raises(InvalidInput, match="viewer, worker, owner"):
        access.grant(ann, "s", "ann", "king")


def test_users_are_made_listed_and_removed(place: Place) -> None:
    ann = place.person("ann")
    place.person("bob")
    place.study(ann)
    assert [(user.name, user.tokens) for user in access.users(place.admin)] == [("ann", 1), ("bob", 1)]
    with pytest.raises(InvalidInput, match="already exists"):
        access.add_user(place.admin, "ann")
    for name in ("", "a b", 'x"; DROP SCHEMA hopaas', "-x", "a" * 46):
        with pytest.raises(InvalidInput):
            access.add_user(place.admin, name)
    access.remove_user(place.admin, "ann")
    assert [user.name for user in access.users(place.admin)] == ["bob"]
    with pytest.raises(Denied):
        place.store(ann).catalog().exchange(None, 0)
    with pytest.raises(InvalidInput, match="no user"):
        access.remove_user(place.admin, "ann")
    assert len(optuna.load_study(study_name="s", storage=place.storage(place.admin)).trials) == 2


def test_no_login_of_the_servers_own_becomes_a_user(place: Place) -> None:
    place.server.execute("DROP ROLE IF EXISTS carla")
    place.server.execute("CREATE ROLE carla LOGIN PASSWORD 'c'")
    carla = place.server.url("store", user="carla", password="c")
    with pytest.raises(Denied, match="user add"):
        place.store(carla).catalog().exchange(None, 0)
    for name in ("carla", "dba", "hopaas_store_owner", "hopaas_store_peers", "pg_read_server_files"):
        with pytest.raises(InvalidInput, match="already exists on this server"):
            access.add_user(place.admin, name)
    with pytest.raises(InvalidInput, match="no user"):
        access.remove_user(place.admin, "carla")
    with pytest.raises(ConfigurationError, match='the server rejected this: role name "public" is reserved'):
        access.add_user(place.admin, "public")
    place.server.execute("DROP ROLE carla")


@pytest.mark.parametrize("vacuumed", [False, True])
def test_who_has_no_grant_is_refused_where_nothing_is_found_too(place: Place, tmp_path: Path, vacuumed: bool) -> None:
    owner, other = place.person("ann"), place.person("bob")
    place.study(owner)
    uuid = place.uuid()
    (tmp_path / "model").write_bytes(b"weights")
    place.store(owner).artifacts().put(f"{uuid}/one", tmp_path / "model")
    place.store(owner).log(uuid).put_snapshot(1, b"snapshot")
    with place.session(place.admin) as say:
        if vacuumed:
            say("VACUUM ANALYZE")
    questions = [
        f"newest_snapshot_v1('{uuid}')",
        f"denied_snapshots_v1('{uuid}')",
        f"doubtful_snapshot_v1('{uuid}', 0, 9)",
        f"block_names_v1('{uuid}')",
        f"blocks_v1('{uuid}', ARRAY['b'])",
        f"judge_snapshot_v1('{uuid}', 1, 'ann', '', true)",
        f"grants_v1('{uuid}')",
        f"read_part_v1('{uuid}/model', NULL, 0)",
    ]
    with place.session(other) as say:
        for question in questions:
            with pytest.raises(psycopg2.Error, match="bob has no grant for this study"):
                say(f"SELECT * FROM hopaas.{question}")
