"""Leases between real processes, on a directory store with a short ttl: who dies, sleeps, or loses the store."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec
import pytest

import hopaas_p2p
from hopaas_p2p import spool
from hopaas_p2p.study import Study
from hopaas_p2p.study.trial import Trial
from tests.support import lease_peer
from tests.support.invariants import check
from tests.support.lease_peer import NOTHING, POINTS, TOLD
from tests.support.processes import SPACE, cli, patient, states, until
from tests.support.served import each_way, reached
from tests.support.studies import opened_study

TTL = 1.0
DAY = 86400 * 1_000_000
Talk = Callable[..., tuple[BaseProcess, Connection]]


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return reached(request)


@pytest.fixture(autouse=True)
def processes() -> Iterator[list[BaseProcess]]:
    started: list[BaseProcess] = []
    yield started
    for process in started:
        process.kill()
        process.join(10)


@pytest.fixture
def studies(store: str) -> Iterator[Any]:
    """Opens the study as one more peer; the first one makes it."""
    opened: list[Study] = []

    def open_it(**options: Any) -> Study:
        ttl = TTL if Path(store).is_absolute() else 5 * TTL  # far away, a look takes longer
        defined = {"space": SPACE, "lease_ttl": ttl} if not opened else {}
        opened.append(opened_study(store, "s", create=not opened, **{**defined, **options}))
        return opened[-1]

    yield open_it
    for study in opened:
        study.close()


@pytest.fixture
def talk(processes: list[BaseProcess], store: str) -> Talk:
    """Starts a process that plays this part; the process, and our end of a pipe to it."""

    def started(role: Any, *more: Any) -> tuple[BaseProcess, Connection]:
        ours, theirs = lease_peer.pipe()
        processes.append(lease_peer.start(role, store, *more, theirs))
        theirs.close()
        return processes[-1], ours

    return started


def hear(pipe: Connection) -> Any:
    assert pipe.poll(patient(60)), "the other process says nothing"
    return pipe.recv()


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join(10)


def test_a_study_whose_last_trial_is_a_dead_peers_shows_what_finishes_it(
    store: str, studies: Any, processes: list[BaseProcess]
) -> None:
    studies(budget=1)
    processes.append(lease_peer.start(lease_peer.die_at, store, "when it has its trial"))
    processes[-1].join(patient(60))
    finishes = f"hopaas-p2p worker --store {Path(store).as_uri()} --study s -- COMMAND)"
    until(lambda: finishes in cli("study", "show", "s", "--store", store).stdout, 30)


# --- kill -9 at named points -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POINTS)
def test_a_peer_killed(name: str, store: str, studies: Any, processes: list[BaseProcess]) -> None:
    point = POINTS[name]
    study = studies(budget=2, lease_ttl=0.5)
    processes.append(lease_peer.start(lease_peer.die_at, store, name))
    processes[-1].join(patient(60))
    assert processes[-1].exitcode == -signal.SIGKILL
    resumed: dict[int, tuple[int, bytes]] = {}

    def objective(trial: Trial) -> float:
        if trial.resume is not None:
            step, path = trial.resume
            resumed[trial.number] = step, path.read_bytes()
            assert list(trial.intermediate_values) == list(range(1, step + 1))
        return float(trial.params["lr"])

    study.optimize(objective, timeout=patient(30))

    state = study.state
    check(state)
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    assert len(complete) == 2
    assert all(trial.value == trial.params["lr"] for trial in complete)
    assert not state.running
    assert not state.waiting
    first = state.trials[0]
    if point.left == NOTHING:
        assert len(state.trials) == 2
        assert first.attempt == 1
    elif point.left == TOLD:
        assert [first.state.name, first.history] == ["COMPLETE", ()]
        assert len(state.trials) == 2
    else:
        assert [first.state.name, len(first.history), first.reason] == ["FAIL", 1, "its owner fell silent"]
        retry = state.trials[first.retried_by or 0]
        assert (retry.state.name, retry.attempt, retry.retry_of) == ("COMPLETE", 2, 0)
        assert retry.params.items() >= first.params.items()
        expected = {} if point.resume is None else {retry.number: (point.resume, f"weights {point.resume}".encode())}
        assert resumed == expected


# --- away, and back --------------------------------------------------------------------------------------------------


@each_way
def test_a_stopped_peer_comes_back_to_a_lost_lease_and_its_result_is_kept(studies: Any, talk: Talk) -> None:
    study = studies()
    _running = study.ask()  # takes part, so it looks after the others
    process, pipe = talk(lease_peer.run_until_told_to_tell)
    number, _ = hear(pipe)

    os.kill(process.pid or 0, signal.SIGSTOP)
    until(lambda: states(study)[number:][:1] == ["FAIL"], 60)
    retry = study.state.trials[number].retried_by
    assert study.state.trials[retry].state.name == "WAITING"
    os.kill(process.pid or 0, signal.SIGCONT)
    pipe.send(0.25)

    said, kept_as, _, valid = hear(pipe)
    assert (said, valid) == ("lost", False)
    study.storage.peer.catch_up(study.handle.log)
    trials = study.state.trials
    assert (trials[kept_as].late_of, trials[kept_as].values) == (number, (0.25,))
    assert trials[retry].state.name == "FAIL"
    assert (trials[retry].reason or "").startswith("withdrawn")
    assert trials[number].history[0].kept_as == kept_as


def test_a_result_that_is_late_stands_beside_that_of_the_retry(studies: Any, talk: Talk) -> None:
    study = studies()
    _running = study.ask()
    process, pipe = talk(lease_peer.run_until_told_to_tell)
    number, _ = hear(pipe)

    os.kill(process.pid or 0, signal.SIGSTOP)
    until(lambda: states(study)[number] == "FAIL", 5 * TTL)
    retry = study.ask()
    study.tell(retry, 0.5)
    os.kill(process.pid or 0, signal.SIGCONT)
    pipe.send(0.25)

    kept_as = hear(pipe)[1]
    assert [study.trials[one].value for one in (retry.number, kept_as)] == [0.5, 0.25]
    assert study.trials[retry.number].params == study.trials[kept_as].params
    check(study.state)


def test_a_peer_that_beats_keeps_its_trial_for_many_ttls(studies: Any, talk: Talk) -> None:
    study = studies(lease_ttl=0.5)
    _running = study.ask()
    _, pipe = talk(lease_peer.run_until_told_to_tell)
    number, owner = hear(pipe)
    beats = set()

    def seen_enough() -> bool:
        beats.add(study.storage.peer.store.beats([owner])[owner])
        return len(beats) > 12  # four ttls, at three beats each

    until(seen_enough)
    pipe.send(1.0)

    assert hear(pipe)[0] == "told"
    assert states(study)[number] == "COMPLETE"


def test_a_busy_peer_that_asks_nothing_notices_all_the_same_that_another_died(studies: Any, talk: Talk) -> None:
    busy = studies()
    _running = busy.ask()
    process, pipe = talk(lease_peer.run_until_told_to_tell)
    number, _ = hear(pipe)
    kill(process)
    witness = studies()  # only reads, so it takes nothing over

    until(lambda: states(witness)[number] == "FAIL", 10 * TTL)

    assert witness.state.trials[number].history[0].why == "its owner fell silent"


@each_way
def test_two_observers_reclaim_at_once_and_it_happens_once(studies: Any, talk: Talk) -> None:
    observers = [studies() for _ in range(4)]
    _running = [observer.ask() for observer in observers]
    process, pipe = talk(lease_peer.run_until_told_to_tell)
    number, _ = hear(pipe)

    kill(process)
    for observer in observers:
        until(lambda seen=observer: states(seen)[number:][:1] == ["FAIL"], 60)

    state = observers[0].state
    assert len(state.trials[number].history) == 1
    assert [trial.number for trial in state.trials if trial.retry_of == number] == [state.trials[number].retried_by]
    check(state)


@pytest.mark.parametrize("interrupted", ["fail", "prune"])
def test_a_retry_that_dies_too_is_tried_until_attempts_end(studies: Any, talk: Talk, interrupted: str) -> None:
    study = studies(attempts=3, interrupted=interrupted, lease_ttl=0.5)
    _running = study.ask()
    process, pipe = talk(lease_peer.run_until_told_to_tell)
    number, _ = hear(pipe)
    kill(process)

    for attempt in (2, 3):
        until(lambda dead=number: states(study)[dead] == "FAIL", 5 * TTL)
        number = study.state.trials[number].retried_by
        assert study.state.trials[number].attempt == attempt
        process, pipe = talk(lease_peer.claim_and_die, number)
        assert hear(pipe) == number
        kill(process)
    until(lambda: study.state.trials[number].state.name != "RUNNING", 5 * TTL)

    last = study.state.trials[number]
    assert last.retried_by is None
    assert last.state.name == {"fail": "FAIL", "prune": "PRUNED"}[interrupted]
    assert last.values == {"fail": None, "prune": (float(number),)}[interrupted]
    assert not study.state.waiting


# --- without the store -----------------------------------------------------------------------------------------------


def test_a_peer_without_the_store_doubts_itself_spools_its_result_and_is_heard_late(studies: Any, talk: Talk) -> None:
    study = studies()
    _running = study.ask()
    _, pipe = talk(lease_peer.tell_while_the_store_is_away)
    number, _ = hear(pipe)

    pipe.send("lose it")
    assert hear(pipe) == "lost"
    until(lambda: states(study)[number] == "FAIL", 5 * TTL)  # long past its own doubts
    pipe.send("tell")
    assert hear(pipe) is False
    (waiting,) = [spooled for _, spooled in spool.waiting()]
    assert (waiting.name, waiting.trials) == ("s", [number])
    pipe.send("find it")

    late = until(lambda: [one for one in study.state.trials if one.late_of == number])
    assert [one.values for one in late] == [(0.5,)]
    until(lambda: not list(spool.waiting()))
    pipe.send("end")


def test_a_store_away_for_everybody_for_three_ttls_costs_nobody_its_trial(studies: Any, talk: Talk) -> None:
    study = studies()
    _running = study.ask()
    _, pipe = talk(lease_peer.tell_while_the_store_is_away)
    number, owner = hear(pipe)
    peer = study.storage.peer
    looks = lambda: study.handle.log.session.owners.next_look  # noqa: E731
    until(lambda: study.handle.log.session.owners.detector.proven_alive(owner, since=peer.clock() - TTL))

    pipe.send("lose it")
    assert hear(pipe) == "lost"
    with lease_peer.store_away():
        end = peer.clock() + 3 * TTL
        until(lambda: peer.clock() > end)
        pipe.send("tell")
        assert hear(pipe) is False
    before = looks()
    until(lambda: looks() > before + TTL / 8, what="the observer, who is back first, and sees the same old beat")
    pipe.send("find it")

    until(lambda: states(study)[number] != "RUNNING")
    assert (states(study)[number], study.state.trials[number].history) == ("COMPLETE", ())
    assert not [one for one in study.state.trials if one.late_of is not None]
    pipe.send("end")


def result_left_in_the_spool(talk: Talk) -> tuple[int, Path, spool.Spooled]:
    """A peer that told while the store was away, and was killed then: the trial, and what waits to be sent."""
    process, pipe = talk(lease_peer.tell_while_the_store_is_away)
    number, _ = hear(pipe)
    pipe.send("lose it")
    assert hear(pipe) == "lost"
    pipe.send("tell")
    assert hear(pipe) is True
    kill(process)
    ((path, waiting),) = spool.waiting()
    return number, path, waiting


def test_a_result_of_a_killed_process_is_sent_by_another_and_twice_counts_once(
    store: str, studies: Any, talk: Talk
) -> None:
    study = studies(lease_ttl=60.0)
    number, path, _ = result_left_in_the_spool(talk)
    assert states(study) == ["RUNNING"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    copy = path.read_bytes()

    listed = json.loads(cli("admin", "spool", "list", "--json").stdout)
    assert [(row["study"], row["trials"], row["file"]) for row in listed] == [("s", [number], str(path))]
    assert cli("admin", "spool", "send").stderr == "Sent 1 file.\n"

    assert study.trials[number].value == 0.5
    assert not path.exists()
    path.write_bytes(copy)
    assert json.loads(cli("admin", "spool", "send", "--store", store, "--json").stdout)["sent"] == [str(path)]
    assert [trial.value for trial in study.trials] == [0.5]
    assert study.state.refusals == {"duplicate": 1}
    assert cli("admin", "spool", "list").stderr == "No results are waiting to be sent.\n"


def test_what_cannot_be_sent_stays_in_the_spool_and_says_why(store: str, studies: Any, talk: Talk) -> None:
    studies(lease_ttl=60.0)
    result_left_in_the_spool(talk)
    shutil.move(store, f"{store}-elsewhere")

    done = cli("admin", "spool", "send", check=False)

    assert done.returncode == 78
    assert "Sent 0 files; could not send 1." in done.stderr
    assert "there is no store in" in done.stderr
    assert len(list(spool.waiting())) == 1


def test_a_result_that_no_store_takes_any_more_holds_up_no_other(studies: Any, talk: Talk) -> None:
    study = studies(lease_ttl=60.0)
    number, _, good = result_left_in_the_spool(talk)
    bad, _ = spool.write(msgspec.structs.replace(good, study="../elsewhere"))
    bad.rename(bad.with_name(f"00{bad.name[2:]}"))  # the first in line

    taking_part = studies()
    taking_part.tell(taking_part.ask(), 1.0)

    until(lambda: study.trials[number].value == 0.5)
    until(lambda: [one.study for _, one in spool.waiting()] == ["../elsewhere"])  # the last step


# --- clocks, tickets, stop, drain, progress, checkpoints -------------------------------------------------------------


def test_clocks_that_are_days_apart_take_no_trial_away_and_save_none(studies: Any, talk: Talk) -> None:
    first = studies(lease_ttl=0.5)
    peers = []
    for days in (-1, 0, 1):
        study = studies(linger=0.05)
        session = study.storage._handles[study.study_id].log.session
        study.storage.peer.now_us = session._now_us = lambda days=days: 1_700_000_000_000_000 + days * DAY
        peers.append((study, study.ask()))
    process, pipe = talk(lease_peer.run_until_told_to_tell)
    number, _ = hear(pipe)

    kill(process)
    for study, _ in peers:
        until(lambda seen=study: states(seen)[number] == "FAIL", 10)

    for study, trial in peers:
        assert trial.lease_valid
        study.tell(trial, 1.0)
    told = [trial.number for _, trial in peers]
    assert [states(first)[one] for one in told] == ["COMPLETE"] * 3
    starts = {first.state.trials[one].start // DAY for one in told}
    assert max(starts) - min(starts) == 2


def test_a_ticket_is_kept_by_renewing_it_from_the_shell_and_lost_by_silence(store: str, studies: Any) -> None:
    study = studies()
    _running = study.ask()
    asked = json.loads(cli("trial", "ask", "-s", store, "--study", "s", "--ttl", "4", "--json").stdout)
    number, clock = asked["number"], study.storage.peer.clock
    end = clock() + 6.0

    while clock() < end:
        cli("trial", "renew", HOPAAS_TICKET=asked["ticket"])
    assert states(study)[number] == "RUNNING"

    until(lambda: states(study)[number] == "FAIL", 10)
    assert cli("trial", "renew", HOPAAS_TICKET=asked["ticket"], check=False).returncode == 11
    told = cli("trial", "tell", "0.5", HOPAAS_TICKET=asked["ticket"], check=False)
    assert told.returncode == 11
    assert [one.values for one in study.state.trials if one.late_of == number] == [(0.5,)]


def test_a_stop_is_requested_then_acknowledged_then_done_and_seen_at_each_step(store: str, studies: Any) -> None:
    owner, other = studies(linger=0.05), studies()
    trial = owner.ask()
    seen = lambda: other.state.trials[trial.number]  # noqa: E731
    shown = lambda: cli("trial", "show", str(trial.number), HOPAAS_STORE=store, HOPAAS_STUDY="s").stdout  # noqa: E731

    asked = cli("trial", "stop", "0", "--reason", "enough of it", HOPAAS_STORE=store, HOPAAS_STUDY="s")
    assert asked.stderr == "Trial 0 was asked to end.\n"
    assert (seen().stop, seen().stopping, seen().state.name) == ("enough of it", False, "RUNNING")
    assert "enough of it (not acknowledged)\n" in shown()

    assert trial.should_prune()
    until(lambda: seen().stopping)
    assert (seen().stop, seen().state.name) == ("enough of it", "RUNNING")
    assert "enough of it (acknowledged by its peer)\n" in shown()

    owner.tell(trial, state="pruned")
    assert (seen().state.name, seen().reason) == ("PRUNED", "enough of it")


def test_a_drained_peer_finishes_its_trial_and_takes_no_more(store: str, studies: Any) -> None:
    drained, other = studies(), studies()
    trial = drained.ask()
    (row,) = json.loads(cli("peers", "list", "-s", store, "--study", "s", "--json").stdout)
    assert (row["running"], row["draining"]) == ([trial.number], False)

    cli("peers", "drain", "-s", store, "--study", "s", "--", row["peer"][:8])

    (row,) = json.loads(cli("peers", "list", "-s", store, "--study", "s", "--json").stdout)
    assert row["draining"]
    assert not trial.should_prune()
    drained.tell(trial, 1.0)
    with pytest.raises(hopaas_p2p.errors.NoWork, match="take no more"):
        drained.ask()
    other.tell(other.ask(), 1.0)
    cli("peers", "drain", "-s", store, "--study", "s", "--off", "--", row["peer"])
    drained.tell(drained.ask(), 1.0)
    assert states(other) == ["COMPLETE"] * 3


def test_a_drained_site_takes_no_more_also_peers_that_come_later(
    store: str, studies: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = studies()
    here.tell(here.ask(), 1.0)
    monkeypatch.setenv("HOPAAS_SITE", "far-away")

    said = cli("peers", "drain", "-s", store, "--study", "s", "--site", "far-away").stderr

    assert "No peer of the site 'far-away' has taken part yet" in said
    there = studies()
    with pytest.raises(hopaas_p2p.errors.NoWork, match="take no more"):
        there.ask()
    here.tell(here.ask(), 1.0)


def test_a_peer_that_nobody_knows_is_not_drained(store: str, studies: Any) -> None:
    studies()

    done = cli("peers", "drain", "-s", store, "--study", "s", "nobody", check=False)

    assert done.returncode == 1
    assert "matches 'nobody'" in done.stderr


def test_a_live_trial_without_progress_is_asked_to_stop_then_taken_away(studies: Any, talk: Talk) -> None:
    study = studies(lease_ttl=0.8, progress_timeout=0.8)
    running = study.ask()
    running.report(0.0, 0)
    process, pipe = talk(lease_peer.run_until_told_to_tell)
    number, _ = hear(pipe)

    until(lambda: (study.state.trials[number].stop or "").startswith("no report for"))
    assert states(study)[number] == "RUNNING"
    until(lambda: states(study)[number] == "FAIL")

    assert process.is_alive()
    assert study.state.trials[number].history[0].why.startswith("no report for")


@pytest.mark.parametrize("harm", ["cut", "changed", "gone", "both"])
def test_a_damaged_checkpoint_costs_one_step_back(store: str, studies: Any, harm: str) -> None:
    owner, other = studies(), studies()
    trial = owner.ask()
    for step in (1, 2, 3):
        trial.checkpoint(f"weights {step}".encode(), step=step)
    newest = Path(store, "v1", "artifacts", owner.state.trials[0].checkpoints[-1].key)
    match harm:
        case "cut":
            newest.write_bytes(newest.read_bytes()[:-1])
        case "changed":
            newest.write_bytes(b"weights 4")
        case "gone":
            newest.unlink()
        case "both":
            for one in owner.state.trials[0].checkpoints:
                Path(store, "v1", "artifacts", one.key).write_bytes(b"")
    owner.handle.release(trial.number)

    again = other.ask()
    resumed = again.resume

    if harm == "both":
        assert resumed is None
    else:
        assert resumed is not None
        assert (resumed[0], resumed[1].read_bytes()) == (2, b"weights 2")
