"""What an agent or a program in another language waits for, in a study of 100,000 trials that grows meanwhile.

Each request goes through the local server's HTTP, an agent's through the tools of MCP. Before each, another peer ends a
trial, so that no answer can be one from before. CPU is that of the whole process: on a busy machine it says more.
"""

from __future__ import annotations

import http.client
import json
import random
import statistics
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, Final

import optuna

import hopaas_p2p
from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, Float, TrialCreate, TrialFinish, TrialSet, TrialState
from hopaas_p2p.ports.http import LocalServer
from hopaas_p2p.ports.local import LocalPeer
from hopaas_p2p.ports.mcp import as_data
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.study import Study

_TRIALS: Final = 100_000
_TOGETHER: Final = 100  # trials in a commit of the prepared log
_CALLS: Final = 40
_ASKED: Final = "200 ms, 4,000 B"
_NAMES: Final = ("lr", "depth", "momentum", "decay", "dropout")


def _grown(url: str) -> Study:
    """A study of that many complete trials with 5 parameters and 10 reports each."""
    study = hopaas_p2p.open_study(url, "s", space={name: hopaas_p2p.Float(0, 1) for name in _NAMES})
    log = study.handle.log.log
    numbers, lsn = random.Random(1), study.state.lsn
    dists = {name: Float(0.0, 1.0) for name in _NAMES}
    for first in range(0, _TRIALS, _TOGETHER):
        records: list[Any] = []
        for number in range(first, first + _TOGETHER):
            params = {name: numbers.random() for name in _NAMES}
            reports = {step: numbers.random() for step in range(10)}
            loss = (params["lr"] - 0.3) ** 2 + 0.1 * params["depth"]
            records += [
                TrialCreate(),
                TrialSet(number, 1, params, dists, reports),
                TrialFinish(number, 1, TrialState.COMPLETE, (loss,)),
            ]
        at = 1_700_000_000_000_000 + first * 1_000_000
        payload = codec.encode(Commit("w" * 16, first // _TOGETHER + 1, "w" * 16, at, tuple(records)))
        lsn = log.exchange(Outgoing("", payload), lsn).entries[-1].lsn
    return study


def main() -> str:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    other = _grown("memory://agents")
    assert other.state.counts[TrialState.COMPLETE] == _TRIALS
    peer = LocalPeer(hopaas_p2p.open_storage("memory://agents"), actions=True)
    server = LocalServer(peer, ("127.0.0.1", 0), "k" * 20)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = http.client.HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]))

    def post(verb: str, **body: Any) -> bytes:
        text = json.dumps({"study": "s", **body})
        client.request("POST", f"/v1/{verb}", text, {"Authorization": "Bearer " + "k" * 20})
        reply = client.getresponse().read()
        assert json.loads(reply)["ok"], reply
        return reply

    def run() -> bytes:
        trial = json.loads(post("ask"))["trial"]
        post("report", trial=trial, value=0.5, step=1)
        return post("tell", trial=trial, values=[0.5])

    def tool(name: str, **options: Any) -> Callable[[], bytes]:
        answer = as_data(getattr(peer, name))
        return lambda: answer("s", **options).encode()

    requests: dict[str, Callable[[], bytes]] = {
        "show": lambda: post("show"),
        "trials, newest": lambda: post("trials", order="newest", limit=50),
        "trials, best": lambda: post("trials", order="best", limit=50),
        "trials, pruned": lambda: post("trials", state="pruned"),
        "trial": lambda: post("trial", trial=_TRIALS // 2),
        "importances": lambda: post("importances"),
        "ask, report and tell": run,
        "show, MCP": tool("show"),
        "trials, best, MCP": tool("trials", order="best", limit=50),
        "importances, MCP": tool("importances"),
    }
    lines = ["| request | CPU | median | 95 % within | largest answer | asked |", "|---|---|---|---|---|---|"]
    for name, request in requests.items():
        request()  # the first reads the study
        waits, cpu, largest = [], 0.0, 0
        for _ in range(_CALLS):
            other.tell(other.ask(), 0.5)
            began, used = time.perf_counter(), time.process_time()
            reply = request()
            waits.append(1e3 * (time.perf_counter() - began))
            cpu += 1e3 * (time.process_time() - used) / _CALLS
            largest = max(largest, len(reply))
        within = statistics.quantiles(waits, n=20)[-1]
        times = f"{cpu:.0f} ms | {statistics.median(waits):.0f} ms | {within:.0f} ms"
        lines.append(f"| {name} | {times} | {largest:,} B | {_ASKED} |")
    client.close()
    server.shutdown()
    server.server_close()
    peer.close()
    other.close()
    return "\n".join(lines)
