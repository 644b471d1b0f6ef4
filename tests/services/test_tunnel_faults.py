"""What breaks between a peer and its database, and what becomes of the work: nothing is lost, nothing is done twice."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

import hopaas_p2p
from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.net.proxies import ServerAddress
from hopaas_p2p.open import open_store
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.stores.postgres import watchdog
from hopaas_p2p.testing.commits import append_many, everything
from hopaas_p2p.tunnel import client
from tests.support.listening import Listening
from tests.support.postgres import Server
from tests.support.postgres_fixtures import OWNER
from tests.support.processes import SPACE, environment, until
from tests.support.tunnel_fixtures import HOST, Centre, GatewayProcess, forget_gateways, tunnels

READY = b"Z\0\0\0\5I"


@pytest.fixture
def token(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> Secret:
    """In the environment, too."""
    made = centre.token().secret
    monkeypatch.setenv("HOPAAS_TOKEN", made.reveal())
    return made


def connects(gateway: GatewayProcess, **options: Any) -> Any:
    return client.connect([ServerAddress(HOST, gateway.port)], **{"dbname": "store", **options})


def scalar(connection: Any, sql: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def again(call: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What a peer does: try until the store is there."""

    def attempt() -> Any:
        try:
            return (call(),)
        except StoreUnreachable:
            return None

    return until(attempt, seconds)[0]


# --- the gateway ends --------------------------------------------------------------------------------------------


def test_a_gateway_killed_in_a_transaction_takes_it_back(centre: Centre, token: Secret) -> None:
    gateway = centre.gateway()
    connection = connects(gateway, user=OWNER, password=centre.server.password)
    centre.server.execute("DROP TABLE IF EXISTS public.half", database="store")
    scalar(connection, "CREATE TABLE public.half (x int); INSERT INTO public.half VALUES (1) RETURNING x")
    gateway.kill()
    with pytest.raises(psycopg2.OperationalError):
        scalar(connection, "SELECT 1")
    connection.close()
    ((there,),) = until(
        lambda: centre.server.execute("SELECT to_regclass('public.half') IS NULL", database="store"),
    )
    assert there
    until(lambda: tunnels() == 0)


def test_commits_take_effect_once_though_the_gateway_is_killed_again_and_again(centre: Centre, token: Secret) -> None:
    first, second = centre.gateway(), centre.gateway()
    store = open_store(centre.url(first.port, second.port))
    log = store.log("u")
    over, kills = threading.Event(), 0

    def kill() -> None:
        nonlocal kills
        while not over.is_set():
            for gateway in (first, second):
                gateway.kill()
                gateway.start()
                kills += 1

    killing = threading.Thread(target=kill)
    killing.start()
    try:
        number = 0
        while kills < 4:
            payload = b"n%d" % number
            again(lambda payload=payload: log.exchange(Outgoing(payload.decode(), payload), 0))
            number += 1
    finally:
        over.set()
        killing.join(60)
    entries = again(lambda: everything(log))
    assert [entry.payload for entry in entries] == [b"n%d" % one for one in range(number)]
    assert [entry.lsn for entry in entries] == list(range(1, number + 1))
    store.close()


def test_a_gateway_that_is_stopped_is_left_for_another_one(centre: Centre, token: Secret) -> None:
    """It answers nothing and closes nothing: only its pings are missed."""
    first, second = centre.gateway("--ping", "1"), centre.gateway("--ping", "1")
    store = open_store(centre.url(first.port, second.port))
    log = store.log("u")
    append_many(log, "a", 2)
    used = first if first.events("opened") else second
    used.signal(signal.SIGSTOP)
    payload = b"while it sleeps"
    again(lambda: log.exchange(Outgoing("n", payload), 0))
    assert len(everything(log)) == 3
    used.signal(signal.SIGCONT)
    store.close()
    until(lambda: tunnels() == 0)


def test_a_gateway_that_drains_lets_transactions_end_and_peers_notice_nothing(centre: Centre, token: Secret) -> None:
    old, new = centre.gateway("--drain", "60"), centre.gateway()
    idle, busy = (connects(old, user=OWNER, password=centre.server.password) for _ in range(2))
    assert scalar(busy, "SELECT 1") == 1
    idle.autocommit = True
    assert scalar(idle, "SELECT 1") == 1
    peer = open_store(centre.url(old.port, new.port))
    client._preferred = ServerAddress(HOST, old.port)
    append_many(peer.log("u"), "a", 1)
    old.signal(signal.SIGTERM)
    until(lambda: len(old.events("closed")) == 2)
    with pytest.raises(psycopg2.OperationalError):
        scalar(idle, "SELECT 1")
    append_many(peer.log("u"), "b", 1)
    assert scalar(busy, "SELECT 2") == 2, "in a transaction, so it may go on"
    busy.commit()
    assert old.process is not None
    assert old.process.wait(60) == 0
    assert {event["code"] for event in old.events("closed")} == {1001}
    for one in (idle, busy):
        one.close()
    peer.close()


@pytest.mark.parametrize(("drain", "signals"), [("0.5", 1), ("300", 2)])
def test_a_gateway_that_drains_does_not_wait_for_ever(centre: Centre, token: Secret, drain: str, signals: int) -> None:
    """A second signal, as a second Ctrl-C, ends the waiting."""
    gateway = centre.gateway("--drain", drain)
    busy = connects(gateway)
    scalar(busy, "SELECT 1")
    for _ in range(signals):
        gateway.signal(signal.SIGTERM)
        until(lambda: gateway.events("draining"))
    assert gateway.process is not None
    assert gateway.process.wait(60) == 0
    with pytest.raises(psycopg2.OperationalError):
        scalar(busy, "SELECT 1")
    busy.close()


# --- Postgres ends -----------------------------------------------------------------------------------------------


def test_a_study_goes_on_after_postgres_was_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(_own_centre(tmp_path, monkeypatch)) as own:
        study = hopaas_p2p.open_study(own.url, "s", space=SPACE, budget=6)

        def objective(trial: hopaas_p2p.Trial) -> float:
            if trial.number in (1, 3):
                own.server.kill() if trial.number == 1 else own.server.halt()
                own.server.start()
            return trial.params["lr"]

        study.optimize(objective)
        assert [trial.state.name for trial in study.state.trials] == ["COMPLETE"] * 6
        study.close()


def test_a_postgres_that_hangs_behind_a_gateway_is_given_up_as_on_a_direct_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway answers and pings as ever; but of Postgres' protocol nothing moves."""
    monkeypatch.setattr(watchdog, "IDLE_LIMIT", 1.0)
    monkeypatch.setattr(watchdog, "_BLIND_LOOKS", 1 << 30)
    with (
        contextlib.closing(_own_centre(tmp_path, monkeypatch)) as own,
        contextlib.closing(open_store(own.url)) as store,
    ):
        log = store.log("u")
        append_many(log, "a", 1)
        own.server.freeze()
        try:
            with pytest.raises(StoreUnreachable):
                log.exchange(Outgoing("n", b"while it hangs"), 0)
        finally:
            own.server.freeze(False)
        again(lambda: log.exchange(Outgoing("n", b"while it hangs"), 0))
        assert [entry.payload for entry in everything(log)][1:] == [b"while it hangs"]


def test_a_long_answer_through_a_gateway_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the watch over silence looks at is whether bytes move, and the tunnel tells how many."""
    with contextlib.closing(_own_centre(tmp_path, monkeypatch)) as own:
        connection = client.connect([ServerAddress(HOST, own.port)], dbname="store")
        inode = os.fstat(connection.fileno()).st_ino
        before = client.bytes_moved(inode)
        assert before is not None
        scalar(connection, "SELECT repeat('x', 1000000)")
        after = client.bytes_moved(inode)
        assert after is not None
        assert 1_000_000 < after - before < 1_100_000
        connection.close()
        until(lambda: client.bytes_moved(inode) is None)


class _Own:
    """A centre with a Postgres that may be broken."""

    def __init__(self, server: Server, centre: Centre, port: int) -> None:
        self.server, self._centre, self.port = server, centre, port
        self.url = centre.url(port)

    def close(self) -> None:
        self._centre.stop()
        self.server.stop()


def _own_centre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Own:
    from hopaas_p2p import access

    server = Server().start()
    server.execute("CREATE DATABASE store")
    access.initialise(server.url("store"))
    centre = Centre(server, server.url("store"), tmp_path)
    monkeypatch.setenv("HOPAAS_TOKEN", centre.token().secret.reveal())
    monkeypatch.setenv("HOPAAS_CA_FILE", str(centre.authority.file))
    forget_gateways()
    return _Own(server, centre, centre.gateway().port)


# --- the link ends without a word --------------------------------------------------------------------------------


class Hole(Listening):
    """A relay to a port that may begin to swallow everything, as a firewall does that has forgotten a connection."""

    def __init__(self, target: int) -> None:
        super().__init__()
        self._target = target
        self.swallows = threading.Event()

    def serve(self, client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self._target)) as there:
            back = threading.Thread(target=self._copy, args=(there, client), daemon=True)
            back.start()
            self._copy(client, there)
            back.join()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if not self.swallows.is_set():
                    target.sendall(data)
        if not self.swallows.is_set():
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def hole(centre: Centre, token: Secret) -> Iterator[tuple[GatewayProcess, Hole]]:
    gateway = centre.gateway("--ping", "1")
    with Hole(gateway.port) as made:
        yield gateway, made


def test_a_half_open_connection_is_noticed_at_both_ends(centre: Centre, hole: tuple[GatewayProcess, Hole]) -> None:
    gateway, link = hole
    connection = client.connect([ServerAddress(HOST, link.port)], dbname="store")
    pid = scalar(connection, "SELECT pg_backend_pid()")
    link.swallows.set()
    with pytest.raises(psycopg2.OperationalError):
        scalar(connection, "SELECT 1")
    until(lambda: tunnels() == 0)
    until(lambda: [event["why"] for event in gateway.events("ended")] == ["silent"])
    until(lambda: not centre.server.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid))
    connection.close()


def test_a_line_that_is_only_quiet_is_kept(centre: Centre, hole: tuple[GatewayProcess, Hole]) -> None:
    """Pings and their answers keep it alive, also while Postgres thinks for long."""
    gateway, link = hole
    connection = client.connect([ServerAddress(HOST, link.port)], dbname="store")
    assert scalar(connection, "SELECT 42 FROM pg_sleep(5)") == 42
    assert tunnels() == 1
    assert gateway.events("ended") == []
    connection.close()


# --- much, and slowly --------------------------------------------------------------------------------------------

_SLOW_READER = """
import os, sys, time
from hopaas_p2p.tunnel import client
from hopaas_p2p.net.proxies import ServerAddress

gateway = sys.argv[2]

def settled():
    # until the gateway has taken from Postgres what it will: bytes carried no longer rise
    before = -1
    while before != (now := carried()):
        before = now
        time.sleep(0.3)

def carried():
    import http.client, ssl
    context = ssl.create_default_context(cafile=os.environ["HOPAAS_CA_FILE"])
    page = http.client.HTTPSConnection("localhost", int(gateway), context=context, timeout=60)
    page.request("GET", "/metrics")
    text = page.getresponse().read().decode()
    page.close()
    return next(line for line in text.splitlines() if 'bytes_total{direction="down"}' in line)

class Slow:
    size = 0
    def write(self, data):
        if self.size in (0, 50_000_000):
            settled()
            print("waited at", self.size, "of", carried().split()[-1], flush=True)
        self.size += len(data)

connection = client.connect([ServerAddress("localhost", int(sys.argv[1]))], dbname="store")
slow = Slow()
with connection.cursor() as cursor:
    cursor.copy_expert("COPY (SELECT repeat('x', 999) FROM generate_series(1, 100000)) TO STDOUT", slow)
    print("rows", cursor.rowcount, "bytes", slow.size)
connection.close()
status = open("/proc/self/status").read()
print("peak", int(status.partition("VmHWM:")[2].split()[0]) // 1024)
"""


def test_a_hundred_megabytes_for_a_slow_reader_stay_where_they_are(
    centre: Centre, token: Secret, tmp_path: Path
) -> None:
    """In Postgres, which waits; neither the gateway nor the peer takes them into memory."""
    gateway = centre.gateway()
    (tmp_path / "slow.py").write_text(_SLOW_READER)
    port = str(gateway.port)
    env = environment(HOPAAS_TOKEN=token.reveal(), HOPAAS_CA_FILE=str(centre.authority.file))
    done = subprocess.run(
        [sys.executable, tmp_path / "slow.py", port, port], capture_output=True, text=True, timeout=120, env=env
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if not line.startswith("waited"))
    waits = [line.split() for line in done.stdout.splitlines() if line.startswith("waited")]
    assert said["rows"] == "100000 bytes 100000000"
    for line in waits:  # kernels let a connection's buffers grow to 32 MB and more, where a reader is slow
        assert int(float(line[4])) - int(line[2]) < 45_000_000, "far more was under way than was read"
    assert len(waits) == 2
    assert int(said["peak"]) < 64
    assert gateway.process is not None
    assert peak_of(gateway.process.pid) < 64


@pytest.mark.parametrize("options", [(), ("--ping", "1")], ids=["", "pings"])
def test_a_hundred_megabytes_for_postgres_are_taken_as_it_takes_them(
    centre: Centre, token: Secret, options: tuple[str, ...]
) -> None:
    """Nor is who sends them taken for dead, though its data fill every buffer and its answers to pings are not heard.

    Not by COPY: psycopg2 ends one without letting other threads run, and the tunnel's is one; see docs/tunnel.md.
    """
    gateway = centre.gateway(*options)
    connection = connects(gateway, user=OWNER, password=centre.server.password)
    still = [0, 0.0]

    def carried() -> float:
        return gateway.metrics(centre.authority)['hopaas_gateway_bytes_total{direction="up"}']

    def stands_still() -> bool:
        """Whether nothing was carried from one look to the next, ten times."""
        now = carried()
        still[:] = [still[0] + 1 if now == still[1] else 0, now]
        return still[0] == 10

    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE much (x text)")
        backend = scalar(connection, "SELECT pg_backend_pid()")
        before = carried()
        os.kill(backend, signal.SIGSTOP)
        sending = threading.Thread(target=cursor.execute, args=("INSERT INTO much VALUES (%s)", ("x" * 100_000_000,)))
        sending.start()
        try:
            until(lambda: carried() > before, 30)
            until(stands_still, 30)
            assert carried() - before < 45_000_000, "far more was sent than Postgres took"
            if options:
                time.sleep(4)  # several pings, none of them answered
        finally:
            os.kill(backend, signal.SIGCONT)
        sending.join(60)
        cursor.execute("SELECT count(*), sum(length(x)) FROM much")
        assert cursor.fetchone() == (1, 100_000_000)
    connection.close()
    assert carried() - before > 100_000_000
    assert gateway.process is not None
    assert peak_of(gateway.process.pid) < 64


def test_a_reader_that_reads_nothing_is_cut_off_at_last(centre: Centre, token: Secret, tmp_path: Path) -> None:
    gateway = centre.gateway("--ping", "1")
    (tmp_path / "stuck.py").write_text(
        "import sys\n"
        "from hopaas_p2p.tunnel import client\n"
        "from hopaas_p2p.net.proxies import ServerAddress\n"
        "class Stuck:\n"
        "    def write(self, data):\n"
        "        sys.stdin.read()\n"
        "cursor = client.connect([ServerAddress('localhost', int(sys.argv[1]))], dbname='store').cursor()\n"
        "cursor.copy_expert(\"COPY (SELECT repeat('x', 999) FROM generate_series(1, 100000)) TO STDOUT\", Stuck())\n"
    )
    env = environment(HOPAAS_TOKEN=token.reveal(), HOPAAS_CA_FILE=str(centre.authority.file))
    with subprocess.Popen(
        [sys.executable, tmp_path / "stuck.py", str(gateway.port)],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=env,
    ) as stuck:
        until(lambda: [event["why"] for event in gateway.events("ended")] == ["silent"], 60)
        stuck.kill()


def peak_of(process: int | str) -> int:
    """The most memory that a process has had, in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) // 1024
