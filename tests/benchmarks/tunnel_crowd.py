"""500 peers on one gateway: a process of theirs holds a part of the connections, a thread each, and exchanges."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.benchmarks.bench_core import commits
from tests.processes import environment

PEERS: Final = 500
_PROCESSES: Final = 4
_LOGS: Final = 50  # ten peers a study
SECONDS: Final = 8.0


class Load(NamedTuple):
    """What the peers did together."""

    exchanges: float
    """A second."""
    p50: float
    """Seconds."""
    p99: float


def run(way: Mapping[str, Any], env: Mapping[str, str], connected: Callable[[], None] | None = None) -> Load:
    """Let all peers connect, then exchange for some seconds. `connected` is called when all are."""
    command = [sys.executable, "-W", "ignore", "-m", __name__, json.dumps(dict(way))]
    everyone = [
        subprocess.Popen(
            [*command, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment(**env), "PYTHONWARNINGS": "ignore"},
        )
        for number in range(_PROCESSES)
    ]
    for one in everyone:
        assert one.stdout is not None
        assert one.stdout.readline().strip() == "connected"
    if connected is not None:
        connected()
    for one in everyone:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    waits: list[float] = []
    for one in everyone:
        waits += json.loads(one.communicate(timeout=300)[0])
    waits.sort()
    return Load(len(waits) / SECONDS, waits[len(waits) // 2], waits[int(0.99 * len(waits))])


def _peers(way: dict[str, Any], part: int) -> None:
    from hopaas_p2p.stores.postgres import calls

    sql = calls()["exchange"]
    payload = commits(1, alone=False)[-1]
    waits: list[list[float]] = []
    barrier = threading.Barrier(PEERS // _PROCESSES + 1)

    def peer(number: int) -> None:
        mine: list[float] = []
        waits.append(mine)
        connection = _connect(way)
        connection.autocommit = True
        cursor = connection.cursor()
        since = 0
        parameters = {
            "log": f"log-{number % _LOGS}",
            "about": None,
            "peer": f"p{number}",
            "beat": "b",
            "limit": 1 << 20,
        }
        barrier.wait()
        barrier.wait()
        end = time.perf_counter() + SECONDS
        while (began := time.perf_counter()) < end:
            nonce = f"{number}:{time.monotonic_ns()}"
            cursor.execute(sql, {**parameters, "since": since, "nonce": nonce, "payload": payload + nonce.encode()})
            since = cursor.fetchall()[-1][0]
            mine.append(time.perf_counter() - began)
        connection.close()

    threads = [
        threading.Thread(target=peer, args=(part * PEERS // _PROCESSES + one,)) for one in range(PEERS // _PROCESSES)
    ]
    for one in threads:
        one.start()
    barrier.wait()
    print("connected", flush=True)
    sys.stdin.readline()
    barrier.wait()
    for one in threads:
        one.join()
    print(json.dumps([wait for mine in waits for wait in mine]))


def _connect(way: dict[str, Any]) -> Any:
    """Directly, or through the gateway if there is one; a moment of refusal in the crowd is tried again."""
    import psycopg2

    from hopaas_p2p.errors import StoreUnreachable
    from hopaas_p2p.tunnel import client
    from hopaas_p2p.tunnel.dial import Gateway

    options = dict(way)
    gateway = options.pop("gateway", None)
    while True:
        try:
            if gateway is None:
                return psycopg2.connect(**options)
            return client.connect([Gateway("localhost", gateway)], **options)
        except (StoreUnreachable, psycopg2.OperationalError):
            time.sleep(0.1)


def cpu_seconds(pid: int) -> float:
    """Of the gateway so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100.0


def resident(pid: int) -> int:
    """Bytes of memory that a process has now."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


if __name__ == "__main__":
    _peers(json.loads(sys.argv[1]), int(sys.argv[2]))
