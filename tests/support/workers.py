"""Peers and judges that tests start on several nodes: `python -m tests.support.workers KIND STORE …`, a line per event.

    ask PEER NUMBER                   an ask has returned
    ack PEER NUMBER VALUE ATTEMPT     a tell has returned
    begun PEER NUMBER                 `optimize` has called the objective
    view PEER LSN DIGEST              what the peer's replica held at its end
    judged {…}                        what the study holds, as a fresh process reads it on this node

`faults` holds what the peers were told against what the judges of all nodes read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import optuna

import hopaas_p2p
from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import LeaseLost
from hopaas_p2p.study import Study
from hopaas_p2p.testing.commits import everything

STUDY = "s"


def say(*words: object) -> None:
    """A whole line at once, also from several processes: a pipe takes up to 4 kB without mixing."""
    os.write(1, " ".join(map(str, words)).encode() + b"\n")


# --- on a node ---------------------------------------------------------------------------------------------------


def joined(store: str, ttl: float) -> Study:
    """The study of all, created by whoever comes first."""
    return hopaas_p2p.open_study(
        store,
        STUDY,
        space={"x": hopaas_p2p.Float(0, 1)},
        policy=hopaas_p2p.StudyPolicy(lease_ttl=ttl),
        sampler=optuna.samplers.RandomSampler(),
    )


def work(options: argparse.Namespace, peer: str) -> None:
    """Ask and tell for so many seconds, or until SIGUSR1 says that it is enough."""
    enough: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: enough.append(number))
    if options.stops:
        _stop_at_random(random.Random(options.stops))
    study = joined(options.store, options.ttl)
    say("joined", peer)
    end = time.monotonic() + options.seconds
    while time.monotonic() < end and not enough:
        trial = study.ask()
        say("ask", peer, trial.number)
        time.sleep(options.pace)
        value = (trial.params["x"] - 0.3) ** 2
        attempt = trial.attempt
        try:
            study.tell(trial, value)
        except LeaseLost:  # it stood still for too long, and is told
            continue
        say("ack", peer, trial.number, repr(value), attempt)
    log = study.handle.log
    study.close()
    say("view", peer, log.state.lsn, snapshot.digest(log.state))


def optimize(options: argparse.Namespace, peer: str) -> None:
    """As `work`, by our `Study.optimize`, which sends a result and the next ask together."""
    study = joined(options.store, options.ttl)
    study.optimize(lambda trial: _objective(trial.params["x"], trial.number, options, peer), timeout=options.seconds)
    study.close()


def journal(options: argparse.Namespace, peer: str) -> None:
    """As `work`, with Optuna's journal file, and its lock for NFS: what ours is measured beside."""
    study = _journal_study(options.store)
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        trial = study.ask()
        x = trial.suggest_float("x", 0.0, 1.0)
        time.sleep(options.pace)
        study.tell(trial, (x - 0.3) ** 2)
        say("ack", peer, trial.number, repr((x - 0.3) ** 2), 1)


def journal_optimize(options: argparse.Namespace, peer: str) -> None:
    """As `journal`, by Optuna's `Study.optimize`."""

    def objective(trial: optuna.Trial) -> float:
        return _objective(trial.suggest_float("x", 0.0, 1.0), trial.number, options, peer)

    _journal_study(options.store).optimize(objective, timeout=options.seconds)


def _objective(x: float, number: int, options: argparse.Namespace, peer: str) -> float:
    say("begun", peer, number)
    time.sleep(options.pace)
    return (x - 0.3) ** 2


def _journal_study(path: str) -> optuna.Study:
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    backend = JournalFileBackend(path, lock_obj=JournalFileOpenLock(path))
    sampler = optuna.samplers.RandomSampler()
    return optuna.create_study(storage=JournalStorage(backend), study_name=STUDY, load_if_exists=True, sampler=sampler)


def _stop_at_random(dice: random.Random) -> None:
    """Stop this process (SIGSTOP) now and then, right before it changes something in a file system."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in {"os.symlink", "os.link", "os.rename", "os.remove"}
        writes = writes or (event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR)))
        if writes and dice.random() < 0.1:
            os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(hook)


def idle(options: argparse.Namespace, peer: str) -> None:
    """Take part, then do nothing for so many seconds."""
    study = joined(options.store, options.ttl)
    study.tell(study.ask(), 1.0)
    say("idle", peer)
    time.sleep(options.seconds)
    study.close()


def count(options: argparse.Namespace, peer: str) -> None:
    """How many calls of the server a trial costs a peer that is alone."""
    study = joined(options.store, options.ttl)
    study.tell(study.ask(), 1.0)
    before = calls(Path(options.store))
    for _ in range(options.trials):
        study.tell(study.ask(), 1.0)
    after = calls(Path(options.store))
    study.close()
    used = {name: after[name] - before.get(name, 0) for name in after}
    say("calls", json.dumps({name: number / options.trials for name, number in used.items() if number}))


def made(options: argparse.Namespace, peer: str) -> None:
    """How often each procedure of the server was called from this node, so far."""
    say(json.dumps(calls(Path(options.store))))


def tell(options: argparse.Namespace, peer: str) -> None:
    """Tell a result now and then, and say so at once."""
    study = joined(options.store, options.ttl)
    say("ready")
    for _ in range(options.trials):
        time.sleep(options.pace)
        trial = study.ask()
        study.tell(trial, 1.0)
        say("told", trial.number)
    study.close()


def watch(options: argparse.Namespace, peer: str) -> None:
    """Say when each result is seen that others tell."""
    study = joined(options.store, options.ttl)
    say("ready")
    seen: set[int] = set()
    end = time.monotonic() + options.seconds
    while len(seen) < options.trials and time.monotonic() < end:
        for trial in study.state.trials:
            if trial.state.name == "COMPLETE" and trial.number not in seen:
                seen.add(trial.number)
                say("saw", trial.number)
        time.sleep(0.05)
    study.close()


def judge(options: argparse.Namespace, peer: str) -> None:
    """What the study holds, and the state it had at these lsns."""
    study = hopaas_p2p.open_study(options.store, STUDY, create=False)
    uuid = study.handle.uuid
    entries = everything(study.storage.peer.store.log(uuid))
    study.close()
    state, digests, log = State(), {}, hashlib.sha256()
    for entry in entries:
        lsn, payload = entry.lsn, entry.payload
        apply(state, lsn, codec.decode(payload), entry.stamp)
        log.update(b"%d %d " % (lsn, len(payload)) + payload)
        if lsn in options.lsns:
            digests[lsn] = snapshot.digest(state)
    late = {trial.late_of: trial.number for trial in state.trials if trial.late_of is not None}
    complete = {trial.number: trial.values[0] for trial in state.trials if trial.state.name == "COMPLETE"}
    found = {"log": log.hexdigest(), "complete": complete, "late": late, "digests": digests}
    say("judged", json.dumps({**found, "commits": len(entries), "refusals": dict(state.refusals)}))


def calls(path: Path) -> dict[str, int]:
    """How often each procedure of the NFS server was called for the file system that this is on."""
    text = Path("/proc/self/mountstats").read_text()
    mounts = {}
    for part in text.split("\ndevice ")[1:]:
        head, _, rest = part.partition("per-op statistics\n")
        mounts[head.split(" mounted on ")[1].split(" with ")[0]] = rest
    mounted = next(str(parent) for parent in path.parents if str(parent) in mounts)
    lines = [line.split() for line in mounts[mounted].splitlines() if ":" in line]
    return {words[0].rstrip(":"): int(words[1]) for words in lines}


KINDS: dict[str, Callable[[argparse.Namespace, str], None]] = {
    "work": work,
    "optimize": optimize,
    "journal": journal,
    "journal_optimize": journal_optimize,
    "idle": idle,
    "count": count,
    "calls": made,
    "tell": tell,
    "watch": watch,
    "judge": judge,
}


def serve(path: str) -> None:
    """Fork a child for each list of words that comes to this socket, with the descriptor that it writes to.

    So a test does not wait for what is slow to import. The answers are the child's pid, then its exit status.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            data, (output, *_), *_ = socket.recv_fds(connection, 65536, 1)
            if os.fork() == 0:
                listener.close()
                _attend(connection, json.loads(data), output)
            connection.close()
            os.close(output)


def _attend(connection: socket.socket, words: list[str], output: int) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        connection.close()
        os._exit(main(words))
    os.close(output)
    connection.sendall(b"%d\n" % child)
    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os._exit(0)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=[*KINDS, "serve"])
    parser.add_argument("store")
    parser.add_argument("lsns", nargs="*", type=int)
    parser.add_argument("--name", default="peer")
    parser.add_argument("--peers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--ttl", type=float, default=60.0)
    parser.add_argument("--pace", type=float, default=0.1)
    parser.add_argument("--stops", type=int, default=0)
    parser.add_argument("--user")
    parser.add_argument("--umask", type=lambda text: int(text, 8), default=0o022)
    options = parser.parse_args(words)
    if options.kind == "serve":
        serve(options.store)
    os.umask(options.umask)
    if options.user:
        _become(options.user)
    if options.peers == 1:
        return _one(options, options.name)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # sent to all, and meant for the children
    children = []
    for number in range(options.peers):  # after all that is slow to import, and before anything is opened
        child = os.fork()
        if child == 0:
            os._exit(_one(options, f"{options.name}-{number}"))
        children.append(child)
    return max([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children], key=abs)


def _become(user: str) -> None:
    import pwd

    entry = pwd.getpwnam(user)
    os.initgroups(user, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def _one(options: argparse.Namespace, peer: str) -> int:
    try:
        KINDS[options.kind](options, peer)
    except BaseException:
        say("failed", peer, json.dumps(traceback.format_exc()[-3000:]))
        return 1
    return 0


# --- in a test ---------------------------------------------------------------------------------------------------


def acknowledged(outputs: Iterable[str]) -> list[tuple[int, float]]:
    """(number, value) of every tell that has returned."""
    words = [line.split() for output in outputs for line in output.splitlines() if line.startswith("ack ")]
    return [(int(number), float(value)) for _, _, number, value, _ in words]


def views(outputs: Iterable[str]) -> dict[str, tuple[str, str]]:
    """(lsn, digest) of each peer's replica at its end."""
    words = [line.split() for output in outputs for line in output.splitlines() if line.startswith("view ")]
    return {peer: (lsn, digest) for _, peer, lsn, digest in words}


def judged(output: str) -> dict[str, Any]:
    """What a judge has said."""
    lines = [line for line in output.splitlines() if line.startswith("judged ")]
    assert lines, output
    found: dict[str, Any] = json.loads(lines[0].partition(" ")[2])
    return found


def faults(outputs: list[str], verdicts: list[dict[str, Any]]) -> list[str]:
    """What was lost or doubled, which judge or peer saw something else, who ended by an error; a sentence for each."""
    found = [line for output in outputs for line in output.splitlines() if line.startswith("failed ")]
    told = acknowledged(outputs)
    numbers = [number for number, _ in told]
    found += [f"#{number} was given twice" for number in sorted({n for n in numbers if numbers.count(n) > 1})]
    for verdict in verdicts:
        kept = {int(number): value for number, value in verdict["complete"].items()}
        kept |= {int(number): kept[late] for number, late in verdict["late"].items() if late in kept}
        found += [f"#{number} with {value} is lost" for number, value in told if kept.get(number) != value]
        found += [
            f"{peer} saw another history up to commit {lsn}"
            for peer, (lsn, digest) in views(outputs).items()
            if verdict["digests"].get(lsn) != digest
        ]
    logs = {(verdict["log"], verdict["commits"]) for verdict in verdicts}
    if len(logs) > 1:
        found.append(f"the nodes read different logs: {logs}")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
