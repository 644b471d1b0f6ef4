"""Tokens on a real server: made, used, renewed, expired, revoked, and by whom."""

from __future__ import annotations

import datetime
import errno
import json
import os
from pathlib import Path
from typing import Any

import optuna
import psycopg2
import pytest

import hopaas_p2p
from hopaas_p2p import access, spool
from hopaas_p2p.errors import Denied, InvalidInput, StoreUnreachable
from hopaas_p2p.joining.invitation import invite
from hopaas_p2p.stores import checks
from hopaas_p2p.stores.postgres import schema
from hopaas_p2p.testing.commits import outgoing
from tests.support.postgres import Server
from tests.support.postgres_people import Place
from tests.support.processes import cli, script, start, until

optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_a_token_is_shown_once_and_known_to_nobody_else(place: Place) -> None:
    access.add_user(place.admin, "ann")
    made = access.create_token(place.admin, "ann", label="laptop", days=7, connections=3)
    secret = made.secret.reveal().partition(":")[2]
    assert secret not in repr(made)
    place.study(place.url((made.name, secret)))
    (token,) = access.tokens(place.admin)
    assert (token.name, token.user, token.label, token.connections) == (made.name, "ann", "laptop", 3)
    assert token.last_used is not None
    assert token.expires is not None
    assert abs(token.expires - token.created - datetime.timedelta(days=7)) < datetime.timedelta(minutes=1)
    kept = place.server.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", made.name)
    assert kept[0][0].startswith("SCRAM-SHA-256$")
    assert secret not in place.server.log()


def test_a_token_is_valid_for_as_many_days_as_were_asked(postgres: Server, postgres_url: str) -> None:
    access.add_user(postgres_url, "ann")
    for days in (1, 365):
        left = access.create_token(postgres_url, "ann", days=days).expires - datetime.datetime.now(datetime.UTC)
        assert abs(left - datetime.timedelta(days=days)) < datetime.timedelta(minutes=1)
    for wrong in (0, -1, 100_000):
        with pytest.raises(InvalidInput, match="days"):
            access.create_token(postgres_url, "ann", days=wrong)
    with pytest.raises(InvalidInput, match="no user"):
        access.create_token(postgres_url, "nobody-here")


def test_an_expired_token_is_denied_in_one_clear_line(place: Place) -> None:
    token = place.token("ann")
    place.server.execute(f"ALTER ROLE \"{token[0]}\" VALID UNTIL '2001-01-01'")
    with pytest.raises(Denied, match="wrong, expired or revoked") as refused:
        place.store(place.url(token)).catalog().exchange(None, 0)
    assert "\n" not in str(refused.value)
    assert token[1] not in str(refused.value)


def test_a_token_that_expires_under_an_open_session_is_denied_in_it(place: Place) -> None:
    """Postgres itself looks at an expiry only when somebody logs in."""
    token = place.token("ann")
    study = place.study(place.url(token))
    log = place.store(place.url(token)).log(place.uuid())
    before = len(log.exchange(None, 0).entries)
    with place.session(place.url(token)) as say:
        place.server.execute(f"ALTER ROLE \"{token[0]}\" VALID UNTIL '2001-01-01'")
        with pytest.raises(psycopg2.Error, match="this token has expired"):
            say("SELECT hopaas.exchange_v1('u1', 0, 'n', 'p', NULL, NULL, NULL, 1000)")
    for attempt in (lambda: log.exchange(None, before), lambda: log.exchange(outgoing("late"), before), study.ask):
        with pytest.raises(Denied, match="expired") as refused:
            attempt()
        assert "\n" not in str(refused.value)
    admins = place.store(place.admin).log(place.uuid())
    assert len(admins.exchange(None, 0).entries) == before


def test_a_token_that_is_renewed_in_its_file_goes_on_under_a_running_program(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    tokens = [place.token("ann") for _ in range(2)]
    monkeypatch.setenv("HOPAAS_TOKEN_FILE", str(file))
    file.write_text(":".join(tokens[0]))
    study = place.study(f"postgresql://127.0.0.1:{place.server.port}/store")
    trial = study.ask()
    file.write_text(":".join(tokens[1]))
    place.server.execute(f"ALTER ROLE \"{tokens[0][0]}\" VALID UNTIL '2001-01-01'")
    study.tell(trial, 1.0)
    trial = study.ask()
    file.write_text(":".join(place.token("ann")))
    access.revoke_token(place.admin, tokens[1][0])
    study.tell(trial, 2.0)
    assert [trial.value for trial in study.trials[2:]] == [1.0, 2.0]


def test_a_token_file_that_cannot_be_read_for_a_moment_does_not_end_optimize(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(":".join(place.token("ann")))
    monkeypatch.setenv("HOPAAS_TOKEN_FILE", str(file))
    study = place.study(f"postgresql://127.0.0.1:{place.server.port}/store")
    before, really_open, failed = len(study.trials), os.open, []

    def fails_twice(path: str | Path, *arguments: Any, **named: Any) -> Any:
        if path == file and len(failed) < 2:
            failed.append(path)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return really_open(path, *arguments, **named)

    def objective(trial: hopaas_p2p.Trial) -> float:
        if trial.number == before:
            monkeypatch.setattr(os, "open", fails_twice)
            place.server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'ann%'")
        return 1.0

    study.optimize(objective, n_trials=2)
    assert len(failed) == 2
    assert [trial.value for trial in study.trials[before:]] == [1.0, 1.0]


def test_a_revoked_tokens_open_session_ends_at_once_and_no_other_begins(place: Place) -> None:
    mine, other = place.token("ann", label="lost"), place.token("ann")
    ours = [place.store(place.url(token)) for token in (mine, other)]
    for store in ours:
        store.catalog().exchange(None, 0)
    with place.session(place.url(mine)) as say:
        with pytest.raises(InvalidInput, match="no token 'lost'"):
            access.revoke_token(place.admin, "lost")  # a label
        access.revoke_token(place.admin, mine[0])
        with pytest.raises(psycopg2.OperationalError):
            say("SELECT 1")
    with pytest.raises(Denied):
        ours[0].catalog().exchange(None, 0)
    ours[1].catalog().exchange(None, 0)
    assert [token.name for token in access.tokens(place.admin)] == [other[0]]
    with pytest.raises(InvalidInput, match="no token"):
        access.revoke_token(place.admin, mine[0])


def test_a_token_that_ends_under_a_running_trial_ends_no_training_and_loses_no_result(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    token = place.token("ann")
    study = hopaas_p2p.open_study(
        place.storage(place.url(token)), "s", space={"x": hopaas_p2p.Float(0, 1)}, pruner=optuna.pruners.NopPruner()
    )
    trial = study.ask()
    access.revoke_token(place.admin, token[0])

    study.handle.log.pulled_at = -1e9  # a read would like to have it fresher
    trial.report(0.5, 1)
    assert not trial.should_prune()
    with pytest.raises(Denied, match=r"is kept in .* hopaas-p2p admin spool send"):
        study.tell(trial, 0.25)
    with pytest.raises(Denied):
        study.ask()

    ((path, kept),) = spool.waiting()
    assert kept.trials == [0]
    again = place.storage(place.person("ann"))
    again.peer.spool.send(kept, again.peer.logs, writer=again.peer.uuid)
    path.unlink()
    (told,) = optuna.load_study(study_name="s", storage=again).trials
    assert (told.value, told.intermediate_values) == (0.25, {1: 0.5})
    assert not list(spool.waiting())


def test_a_worker_whose_token_ends_leaves_with_the_result_on_disk(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    token, ready, go = place.token("ann"), tmp_path / "ready", tmp_path / "go"
    (tmp_path / "token").write_text(":".join(token))
    admin = hopaas_p2p.open_study(place.storage(place.admin), "s", space={"x": hopaas_p2p.Float(0, 1)})
    access.grant(place.admin, "s", "ann", "worker")
    body = f"""
    import pathlib, time
    from hopaas_p2p.ports.client import Trial
    trial = Trial()
    pathlib.Path({str(ready)!r}).touch()
    while not pathlib.Path({str(go)!r}).exists():
        time.sleep(0.02)
    trial.report(0.5, 1)
    trial.tell(0.25)
    """
    url = f"postgresql://127.0.0.1:{place.server.port}/store"
    words = ["worker", "--store", url, "--study", "s", "--", *script(tmp_path, body)]
    worker = start(*words, cwd=tmp_path, HOPAAS_TOKEN_FILE=str(tmp_path / "token"))
    until(ready.exists)
    access.revoke_token(place.admin, token[0])
    go.touch()

    assert worker.wait(60) == 77, (tmp_path / "worker.err").read_text()
    assert "Traceback" not in (tmp_path / "worker.err").read_text()
    ((_, kept),) = spool.waiting()
    assert kept.trials == [0]
    stays = cli("admin", "spool", "send", check=False, HOPAAS_TOKEN_FILE=str(tmp_path / "token"))
    assert (stays.returncode, "could not send 1" in stays.stderr) == (77, True)
    assert cli("admin", "spool", "send", "--store", place.person("ann")).stderr == "Sent 1 file.\n"
    until(lambda: [trial.value for trial in admin.trials] == [0.25])


def test_a_token_serves_no_more_processes_than_it_may(place: Place) -> None:
    token = place.token("ann", connections=1)
    first, second = place.store(place.url(token)), place.store(place.url(token))
    first.catalog().exchange(None, 0)
    with pytest.raises(StoreUnreachable, match="the token has no free connection"):
        second.catalog().exchange(None, 0)
    first.close()
    until(lambda: not access.tokens(place.admin)[0].sessions)
    second.catalog().exchange(None, 0)


def test_only_administrators_make_users_and_tokens(place: Place) -> None:
    ann = place.person("ann")
    for attempt in (
        lambda: access.add_user(ann, "bob"),
        lambda: access.create_token(ann, "ann"),
        lambda: access.tokens(ann),
        lambda: access.users(ann),
        lambda: access.remove_user(ann, "ann"),
        lambda: access.initialise(ann),
    ):
        with pytest.raises(Denied, match="this needs an administrator: use the login"):
            attempt()


def test_commands_print_data_on_stdout_and_messages_on_stderr(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from hopaas_p2p.cli import access as commands

    monkeypatch.setenv("HOPAAS_STORE", place.admin)

    def run(command: Any, *arguments: str) -> Any:
        result = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert place.server.password not in result.output
        return result

    assert json.loads(run(commands.init, place.admin, "--json").stdout)["was"] == schema.SCHEMA_VERSION
    run(commands.user, "add", "ann")
    made = run(commands.token, "create", "ann", "--days", "1", "--label", "here")
    role, _, password = made.stdout.strip().partition(":")
    assert "valid until" in made.stderr
    assert password not in made.stderr
    place.study(place.url((role, password)))
    listed = json.loads(run(commands.token, "list", "--json").stdout)
    assert [(one["name"], one["label"]) for one in listed] == [(role, "here")]
    run(commands.user, "add", "bob")
    run(commands.grant, "s", "bob", "worker")
    assert [(g.user, g.role) for g in access.grants(place.admin, "s")] == [("ann", "owner"), ("bob", "worker")]
    run(commands.revoke, "s", "bob")
    run(commands.token, "revoke", role)
    assert "ann" in run(commands.user, "list").stdout
    run(commands.user, "rm", "ann")
    assert json.loads(run(commands.user, "list", "--json").stdout)[0]["user"] == "bob"


# --- invitations -------------------------------------------------------------------------------------------------


def test_an_invitation_lets_a_guest_into_one_study_and_no_other(place: Place, tmp_path: Path) -> None:
    admin = place.storage(place.admin)
    for name in ("digits", "letters"):
        hopaas_p2p.open_study(admin, name, space={"x": hopaas_p2p.Float(0, 1)})
    made = invite(place.admin, "digits", days=2, site="north")
    assert made.invitation.token is not None
    (token,) = access.tokens(place.admin, user=made.guest)
    assert (token.name, token.label) == (made.token_name, "invitation to digits for north")
    assert token.expires is not None
    assert abs(token.expires - token.created - datetime.timedelta(days=2)) < datetime.timedelta(minutes=1)
    assert "@" not in made.invitation.store

    role, _, password = made.invitation.token.reveal().partition(":")
    guest = hopaas_p2p.open_study(place.storage(place.url((role, password))), "digits", create=False)
    guest.tell(guest.ask(), 1.0)
    assert [one for one in checks.examine(guest.storage.peer.store) if not one.passed] == []
    with pytest.raises(Denied):
        guest.pause()
    with pytest.raises(Denied):
        hopaas_p2p.open_study(guest.storage, "letters", create=False)
    access.revoke_token(place.admin, made.token_name)
    with pytest.raises(Denied):
        place.store(place.url((role, password))).catalog().exchange(None, 0)


def test_guests_of_one_study_role_and_site_are_one_user_with_a_token_each(place: Place) -> None:
    """Whoever is invited again, because a token has expired, goes on as the same user."""
    hopaas_p2p.open_study(place.storage(place.admin), "digits")
    one, other, south = (invite(place.admin, "digits", site=site) for site in ("north", "north", "south"))
    viewer = invite(place.admin, "digits", role="viewer", site="north")
    assert one.guest == other.guest
    assert len({one.guest, south.guest, viewer.guest}) == 3
    assert one.token_name != other.token_name
    roles = {grant.user: grant.role for grant in access.grants(place.admin, "digits")}
    assert (roles[one.guest], roles[viewer.guest]) == ("worker", "viewer")


def test_only_administrators_invite(place: Place) -> None:
    url = place.person("ann")
    hopaas_p2p.open_study(place.storage(url), "digits")
    with pytest.raises(Denied):
        invite(url, "digits")


def test_a_worker_is_no_operator(place: Place) -> None:
    owner = hopaas_p2p.open_study(place.storage(place.person("ann")), "digits", space={"x": hopaas_p2p.Float(0, 1)})
    access.add_user(place.admin, "bob")
    access.grant(place.admin, "digits", "bob", "worker")
    running = owner.ask()
    bob = hopaas_p2p.open_study(place.storage(place.person("bob"), operator=True), "digits", create=False)
    with pytest.raises(Denied, match="grant digits USER owner"):
        bob.tell(0, 1.0)
    assert owner.trials[running.number].state.name == "RUNNING"
    chief = hopaas_p2p.open_study(place.storage(place.person("ann"), operator=True), "digits", create=False)
    chief.tell(0, 1.0)
    until(lambda: owner.trials[running.number].value == 1.0)


def test_with_an_invitation_to_a_database_a_guest_runs_trials_by_one_command(place: Place, tmp_path: Path) -> None:
    hopaas_p2p.open_study(place.storage(place.admin), "digits", space={"x": hopaas_p2p.Float(0, 1)}, budget=2)
    file = tmp_path / "north.invitation"
    file.write_text(invite(place.admin, "digits", site="north").invitation.seal().reveal())
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    done = cli("join", str(file), "--", "sh", "-c", 'echo "{\\"value\\": {x}}"', cwd=tmp_path, check=False, **env)
    assert done.returncode == 0, done.stderr
    study = hopaas_p2p.open_study(place.storage(place.admin), "digits", create=False)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
