"""A server, or a path, that hangs and closes nothing: whoever waits is told, and nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p import access
from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.stores.base import Entry
from hopaas_p2p.stores.postgres import watchdog
from hopaas_p2p.stores.postgres.store import PostgresLog, PostgresStore
from hopaas_p2p.stores.postgres.watchdog import WatchedSocket
from hopaas_p2p.testing.commits import everything, outgoing
from tests.support.exchanges import waits_of_this_thread
from tests.support.latency import Relay
from tests.support.pgbouncer import find_pgbouncer, transaction_pooler
from tests.support.postgres import Server, find_binaries
from tests.support.postgres_fixtures import OWNER, missing
from tests.support.processes import environment, patient, until

QUICK = "connect_timeout=2"  # seconds, the least that libpq takes


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "IDLE_LIMIT", 1.0)


@pytest.fixture
def hanging() -> Iterator[Callable[[Server], None]]:
    """Stops all processes of a server for the rest of the test, or until `freeze(False)`."""
    with contextlib.ExitStack() as stack:

        def hang(server: Server) -> None:
            stack.callback(server.freeze, False)
            server.freeze()

        yield hang


@pytest.fixture
def relay(postgres: Server) -> Iterator[Relay]:
    with Relay(postgres.port) as relay:
        yield relay
        relay.hang(False)


@pytest.fixture
def far(postgres: Server, postgres_url: str, relay: Relay) -> Iterator[PostgresStore]:
    """The empty store, through the relay."""
    store = PostgresStore(f"{postgres.url('store', user=OWNER, port=relay.port)}?{QUICK}")
    yield store
    store.close()


def settled(log: PostgresLog, name: str, since: int) -> list[Entry]:
    """What is in the log when this commit has been sent for as long as it took."""

    def sent() -> bool:
        with contextlib.suppress(StoreUnreachable):
            return bool(log.exchange(outgoing(name), since).entries)
        return False

    until(sent, 60)
    return everything(log)


def test_a_server_that_hangs_is_given_up_and_the_tell_is_kept_and_counts_once(
    hanging: Callable[[Server], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    if not find_binaries():
        missing("a Postgres server")
    with Server() as server:
        access.initialise(server.url())
        storage = hopaas_p2p.open_storage(f"{server.url()}?{QUICK}", patience=0.1)
        study = optuna.create_study(storage=storage, study_name="s")
        trial = study.ask()
        hanging(server)
        with caplog.at_level(logging.WARNING, "hopaas_p2p"):
            study.tell(trial, 1.0)
        (kept,) = tmp_path.rglob("*.commits")
        assert str(kept) in caplog.text
        server.freeze(False)
        until(lambda: _flushed(storage), 60)
        until(lambda: not kept.exists())
        again = hopaas_p2p.open_storage(server.url())
        (told,) = optuna.load_study(study_name="s", storage=again).trials
        assert told.value == 1.0
        for one in (storage, again):
            one.close()


def _flushed(storage: hopaas_p2p.storage.Storage) -> bool:
    with contextlib.suppress(StoreUnreachable):
        storage.flush()
        return True
    return False


def test_a_path_that_lets_nothing_through_is_given_up(far: PostgresStore, relay: Relay) -> None:
    log = far.log("u")
    log.exchange(outgoing("first"), 0)
    relay.hang()
    with pytest.raises(StoreUnreachable, match="hangs") as told:
        log.exchange(outgoing("second"), 1)
    assert "\n" not in str(told.value)
    relay.hang(False)
    assert [entry.payload for entry in settled(log, "second", 1)] == [
        outgoing(name).payload for name in ("first", "second")
    ]


def test_a_server_that_hangs_before_it_lets_anybody_in_is_told(far: PostgresStore, relay: Relay) -> None:
    relay.hang()
    with pytest.raises(StoreUnreachable, match="timeout expired"):
        far.log("u").exchange(outgoing("first"), 0)
    relay.hang(False)
    assert len(settled(far.log("u"), "first", 0)) == 1


def test_an_administrators_command_does_not_hang_either(postgres: Server, postgres_url: str, relay: Relay) -> None:
    url = f"{postgres.url('store', user=OWNER, port=relay.port)}?{QUICK}"
    threading.Timer(0.0, relay.hang).start()
    with pytest.raises(StoreUnreachable):
        while True:
            access.users(url)


def test_whoever_waits_behind_a_pooler_is_told_and_a_commit_counts_once(
    postgres: Server, postgres_url: str, hanging: Callable[[Server], None]
) -> None:
    if find_pgbouncer() is None:
        missing("pgbouncer")
    with transaction_pooler(postgres, OWNER) as port:
        store = PostgresStore(f"{postgres.url('store', user=OWNER, port=port)}?{QUICK}")
        log = store.log("u")
        log.exchange(outgoing("first"), 0)
        hanging(postgres)
        with pytest.raises(StoreUnreachable, match="hangs"):
            log.exchange(outgoing("second"), 1)
        postgres.freeze(False)
        assert len(settled(log, "second", 1)) == 2
        store.close()


def test_a_forked_child_is_watched_as_its_parent_was(far: PostgresStore, relay: Relay) -> None:
    log = far.log("u")
    log.exchange(outgoing("parent"), 0)
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            far.after_fork()
            log.exchange(outgoing("child"), 1)
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            log.exchange(outgoing("lost"), 2)
        except StoreUnreachable as error:
            status = 0 if "hangs" in str(error) else 2
        finally:
            os._exit(status)
    assert os.read(ready[0], 1) == b"x"
    relay.hang()
    os.write(go[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    relay.hang(False)
    assert len(everything(log)) >= 2, "and the parent's connection is its own"
    for descriptor in (*ready, *go):
        os.close(descriptor)


def test_training_goes_on_while_the_server_hangs_and_hears_of_others_when_it_is_back(
    postgres: Server, postgres_url: str, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One read may find out; after that only the background thread waits."""
    near = hopaas_p2p.open_storage(postgres_url)
    others = optuna.create_study(storage=near, study_name="s", sampler=optuna.samplers.RandomSampler())
    far = hopaas_p2p.open_storage(f"{postgres.url('store', user=OWNER, port=relay.port)}?{QUICK}")
    study = optuna.load_study(study_name="s", storage=far)
    assert study.trials == []
    relay.hang()
    others.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    (driver,) = far.peer.logs.values()
    calls = waits_of_this_thread(monkeypatch)
    for _ in range(100):
        driver.session.exchanged_at, far.peer.retry_at = -1e9, 0.0
        assert study.trials == []
    assert far.peer.away
    assert len(calls) <= 1
    relay.hang(False)
    until(lambda: len(study.trials) == 1, 60)
    assert len(calls) <= 1
    for one in (near, far):
        one.close()


_PROGRAM = """
import sys
import threading
import time
import hopaas_p2p

study = hopaas_p2p.open_study(sys.argv[1], "s", space={"x": hopaas_p2p.Float(0, 1)}, create=False)
study.storage.peer.patience = 3600.0

def say_when_the_next_ask_waits():
    while not study.storage.peer.callers:
        time.sleep(0.1)
    print("waits", flush=True)

def objective(trial):
    print(trial.number, flush=True)
    if trial.number == 2:
        sys.stdin.readline()
        threading.Thread(target=say_when_the_next_ask_waits, daemon=True).start()
    return trial.params["x"]

study.optimize(objective)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "ctrl-c"])
def test_a_program_on_a_path_that_swallows_everything_ends_soon_and_keeps_its_result(
    postgres: Server, postgres_url: str, relay: Relay, tmp_path: Path, number: signal.Signals
) -> None:
    """A batch system kills a job half a minute after it has asked it to end."""
    near = hopaas_p2p.open_study(postgres_url, "s", space={"x": hopaas_p2p.Float(0, 1)})
    far = postgres.url("store", user=OWNER, port=relay.port)
    env = environment(XDG_STATE_HOME=str(tmp_path))
    command = [sys.executable, "-c", _PROGRAM, far]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as program:
        assert program.stdout is not None
        assert program.stdin is not None
        until(lambda: program.stdout.readline().strip() == "2", 60)
        relay.hang()
        program.stdin.write("\n")
        program.stdin.flush()
        assert program.stdout.readline().strip() == "waits"
        began = time.monotonic()
        program.send_signal(number)
        program.wait(patient(30.0))
    took = time.monotonic() - began
    assert took < patient(15.0), "8 s are promised on a machine that is not busy"
    assert list(tmp_path.rglob("*.commits"))
    relay.hang(False)
    near.close()


# --- what counts as silence ----------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with ours, theirs:
        yield ours, theirs


def looks_until_given_up(watched: WatchedSocket, most: int = 200) -> int:
    return next(count for count in range(1, most) if watched.look())


def test_bytes_that_move_are_no_silence(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    watched = WatchedSocket(ours.fileno())
    for _ in range(100):
        theirs.sendall(b"a slow reply")
        ours.recv(100)
        assert not watched.look()
    assert looks_until_given_up(watched) == 10
    watched.close()


def test_where_the_kernel_tells_nothing_the_limit_is_ten_times_as_long() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        watched = WatchedSocket(ours.fileno())
        assert looks_until_given_up(watched) == 100
        watched.close()


def test_giving_up_wakes_whoever_reads_and_touches_no_other_descriptor(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    watched = WatchedSocket(ours.fileno())
    number = ours.fileno()
    ours.close()
    other, end = socket.socketpair()
    with other, end:
        assert number in (other.fileno(), end.fileno()), "the number is used again"
        watched.give_up()
        assert theirs.recv(10) == b""
        other.sendall(b"still here")
        assert end.recv(100) == b"still here"
    watched.close()


def test_a_process_that_is_ending_and_has_no_more_threads_makes_its_last_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.12 starts none once `atexit` runs, which sends the last results."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(watchdog, "_checks", False)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    ours, theirs = socket.socketpair()
    with ours, theirs, watchdog.watched(ours.fileno()):
        ours.sendall(b"the last result")
        assert theirs.recv(100) == b"the last result"
