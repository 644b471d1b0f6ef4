"""The core beside Optuna's own storages, in one run on one machine: times are for their ratios, sizes are exact.

The shape of a trial is 5 float parameters and 10 reports, as in the issue that asks for these figures; a bare trial has
3 parameters and no report, so that what a trial costs in itself shows.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import optuna
import psutil
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

import hopaas_p2p
from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.records import Commit, Float, StudyDefine, TrialCreate, TrialFinish, TrialSet
from hopaas_p2p.core.records import TrialState as State_
from hopaas_p2p.core.state import State
from hopaas_p2p.storage import Storage
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.stores.directory.store import DirectoryStore

_NAMES = "abcde"
_BARE_NAMES = "abc"
_TRIALS = 10_000
_MANY = 100_000
_COUNTED = 100


class Row(NamedTuple):
    """One line of the table."""

    what: str
    ours: str
    theirs: str
    ratio: str
    asked: str


def rows(directory: Path) -> list[Row]:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = [*_replay(directory), *_joins(directory), _memory(), *_own_share(directory), *_cpu(directory)]
    return [*found, *_bytecodes(directory)]


def commits(trials: int, *, alone: bool) -> list[bytes]:
    """The log of that many trials; reports leave alone, or together with the end."""
    numbers = random.Random(1)
    log: list[bytes] = []
    at = 1_700_000_000_000_000

    def say(*records: Any) -> None:
        nonlocal at
        at += numbers.randrange(1_000_000)
        log.append(codec.encode(Commit("w" * 16, len(log) + 1, "w" * 16, at, records)))

    say(StudyDefine("bench", ("minimize",)))
    for number in range(trials):
        params = {name: numbers.random() for name in _NAMES}
        dists = {} if number else {name: Float(0.0, 1.0) for name in _NAMES}
        reports = {step: numbers.random() for step in range(10)}
        finish = TrialFinish(number, 1, State_.COMPLETE, (numbers.random(),))
        say(TrialCreate())
        if alone:
            for step, value in reports.items():
                say(TrialSet(number, 1, {} if step else params, {} if step else dists, {step: value}))
            say(finish)
        else:
            say(TrialSet(number, 1, params, dists, reports), finish)
    return log


def _timed(what: Callable[[], Any]) -> float:
    gc.collect()
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def _replayed(log: list[bytes]) -> State:
    state = State()
    for lsn, payload in enumerate(log, 1):
        apply(state, lsn, codec.decode(payload))
    return state


def _journal(path: Path, trials: int) -> None:
    """Optuna's journal of that many trials: the lines it writes for one, again and again with the number of each."""
    storage = JournalStorage(JournalFileBackend(str(path)))
    study_id = storage.create_new_study([StudyDirection.MINIMIZE], "bench")
    distribution = optuna.distributions.FloatDistribution(0.0, 1.0)
    before = path.stat().st_size
    trial_id = storage.create_new_trial(study_id)
    for name in _NAMES:
        storage.set_trial_param(trial_id, name, 0.123456789012345, distribution)
    for step in range(10):
        storage.set_trial_intermediate_value(trial_id, step, 0.123456789012345)
    storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [0.5])
    lines = path.read_text()[before:].replace(f'"trial_id":{trial_id}', '"trial_id":%d')
    assert lines.count("%d") == 16
    with path.open("a") as journal:
        for number in range(1, trials):
            journal.write(lines.replace("%d", str(trial_id + number)))


def _replayed_by_optuna(path: Path, trials: int) -> float:
    """Seconds in which Optuna reads the journal, as it does when a process opens it."""
    storage: list[JournalStorage] = []
    seconds = _timed(lambda: storage.append(JournalStorage(JournalFileBackend(str(path)))))
    read = storage[0].get_all_trials(0, deepcopy=False)
    assert len(read) == trials and len(read[-1].intermediate_values) == 10
    return seconds


def _replay(directory: Path) -> list[Row]:
    together, alone = commits(_TRIALS, alone=False), commits(_TRIALS, alone=True)
    _write(directory / "ours", together)
    _journal(directory / "journal", _TRIALS)
    theirs = _replayed_by_optuna(directory / "journal", _TRIALS)
    fast, slow = (min(_timed(lambda log=log: _replayed(log)) for _ in range(3)) for log in (together, alone))
    ours = hopaas_p2p.open_storage(str(directory / "ours"))
    joined = _timed(lambda: ours.get_all_trials(0, deepcopy=False))
    ours.close()
    size = (directory / "journal").stat().st_size / _TRIALS
    return [
        Row(
            "replay 10,000 trials, reports together",
            f"{fast:.2f} s",
            f"{theirs:.2f} s",
            f"{theirs / fast:.0f} x",
            "8 x",
        ),
        Row("replay 10,000 trials, reports alone", f"{slow:.2f} s", f"{theirs:.2f} s", f"{theirs / slow:.1f} x", ""),
        Row("open, join, all as FrozenTrials", f"{joined:.2f} s", f"{theirs:.2f} s", f"{theirs / joined:.1f} x", ""),
        Row("log, bytes per trial, together", f"{_bytes(together):.0f}", f"{size:.0f}", "", "800"),
        Row("log, bytes per trial, alone", f"{_bytes(alone):.0f}", f"{size:.0f}", "", "1600"),
    ]


def _write(path: Path, log: list[bytes]) -> None:
    """The same log in a directory store, as one study of it."""
    storage = hopaas_p2p.open_storage(str(path))
    storage.create_new_study([StudyDirection.MINIMIZE], "bench")
    uuid = storage.peer.catalog.state.by_id[0].uuid
    storage.close()
    shared = DirectoryStore(path).log(uuid)
    for lsn, payload in enumerate(log[1:], 1):
        shared.exchange(Outgoing("", payload), lsn)


def _bytes(log: list[bytes]) -> float:
    return sum(len(payload) + 10 for payload in log) / _TRIALS  # 10 of a directory's frame


def _joins(directory: Path) -> list[Row]:
    state = _replayed(commits(_MANY, alone=False))
    data = snapshot.dump(state)
    seconds = min(_timed(lambda: snapshot.load(data)) for _ in range(3))
    _journal(directory / "many", _MANY)
    theirs = _replayed_by_optuna(directory / "many", _MANY)
    (directory / "many").unlink()
    return [
        Row(
            "100,000 trials joined, ours from a snapshot",
            f"{seconds:.2f} s",
            f"{theirs:.1f} s",
            f"{theirs / seconds:.0f} x",
            "20 x, 1.5 s",
        ),
        Row("snapshot, bytes per trial", f"{len(data) / _MANY:.0f}", "", "", "130"),
    ]


_MEASURE = """
import gc, psutil, sys
from tests.benchmarks.bench_core import commits, _replayed
from hopaas_p2p.storage.frozen import FrozenTrialCache
log = commits(20_000, alone=False)
gc.collect(); before = psutil.Process().memory_info().rss
state = _replayed(log)
view = FrozenTrialCache(0, set(), allow_pickles=False); view.catch_up(state); view.trials(None)
gc.collect(); print((psutil.Process().memory_info().rss - before) / 20_000)
"""


def _memory() -> Row:
    done = subprocess.run([sys.executable, "-c", _MEASURE], capture_output=True, text=True, check=True)
    return Row("memory, bytes per trial, FrozenTrial included", f"{float(done.stdout):.0f}", "", "", "2500")


def _own_share(directory: Path) -> list[Row]:
    """Ask, 5 suggests, 10 reports with the pruner's read, tell, at 10,000 trials; the sampler left out."""
    ours = hopaas_p2p.open_storage(str(directory / "ours"))
    journal = JournalStorage(JournalFileBackend(str(directory / "journal")))
    mine, theirs = _share(ours), _share(journal)
    ours.close()
    what = "storage's share of a trial at 10,000, fsynced tell"
    return [Row(what, f"{mine:.0f} us", f"{theirs:.0f} us", f"{mine / theirs:.2f}", "0.5")]


def _share(storage: optuna.storages.BaseStorage, repeats: int = 50) -> float:
    study_id = storage.get_study_id_from_name("bench")
    distribution = optuna.distributions.FloatDistribution(0.0, 1.0)
    storage.get_all_trials(study_id, deepcopy=False)

    def trials() -> None:
        for _ in range(repeats):
            trial_id = storage.create_new_trial(study_id)
            for name in _NAMES:
                storage.set_trial_param(trial_id, name, 0.5, distribution)
            for step in range(10):
                storage.set_trial_intermediate_value(trial_id, step, 0.5)
                storage.get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,))
            storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])

    return _timed(trials) / repeats * 1e6


def _objective(trial: optuna.Trial) -> float:
    values = [trial.suggest_float(name, 0.0, 1.0) for name in _NAMES]
    for step in range(10):
        trial.report(sum(values) - step, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return sum(values)


def _bare_objective(trial: optuna.Trial) -> float:
    return sum([trial.suggest_float(name, 0.0, 1.0) for name in _BARE_NAMES])


def _cpu(directory: Path) -> list[Row]:
    """The least of several runs, each beside one of Optuna's: what else the machine does falls on both."""
    samplers: dict[str, tuple[Callable[[], optuna.samplers.BaseSampler], int]] = {
        "TPE": (lambda: optuna.samplers.TPESampler(seed=1), 300),
        "random": (lambda: optuna.samplers.RandomSampler(seed=1), 1000),
    }
    kinds = ("memory", "directory")
    found = []
    for name, (sampler, trials) in samplers.items():
        theirs: list[Cpu] = []
        synced: list[Cpu] = []
        ours: dict[str, list[Cpu]] = {kind: [] for kind in kinds}
        fused: dict[str, list[Cpu]] = {kind: [] for kind in kinds}
        for turn in range(8):
            theirs.append(_cpu_a_trial(optuna.storages.InMemoryStorage(), sampler(), trials))
            synced.append(_cpu_a_trial(_Synced(directory / f"{name}synced{turn}"), sampler(), trials))
            for kind in kinds:
                ours[kind].append(_cpu_a_trial(_fresh(kind, directory, f"{name}{kind}{turn}"), sampler(), trials))
                again = _fresh(kind, directory, f"{name}{kind}{turn}fused")
                fused[kind].append(_cpu_a_trial(again, sampler(), trials, fused=True))
        least = min(theirs, key=sum)
        for kind in kinds:
            for how, runs in (("", ours[kind]), (", Study.optimize", fused[kind])):
                asked = {"TPE": "1.02", "random": "1.10"}[name] if kind == "memory" else ""
                found.append(_cpu_row(f"CPU per trial, {name}, {kind} store{how}", min(runs, key=sum), least, asked))
        what = f"… directory store, Optuna's in memory with the same calls of the file system ({name})"
        found.append(_cpu_row(what, min(ours["directory"], key=sum), min(synced, key=sum), "1.15"))
    return [*found, *_cpu_bare(directory)]


def _cpu_bare(directory: Path) -> list[Row]:
    """A trial with a random sampler and nothing to report."""
    runs: dict[str, list[Cpu]] = {"Optuna": [], "": [], ", Study.optimize": []}
    for turn in range(8):
        for what, found in runs.items():
            storage: optuna.storages.BaseStorage = optuna.storages.InMemoryStorage()
            if what != "Optuna":
                storage = _fresh("memory", directory, f"bare{turn}{what}")
            sampler, fused = optuna.samplers.RandomSampler(seed=1), what == ", Study.optimize"
            found.append(_cpu_a_trial(storage, sampler, 1000, fused=fused, objective=_bare_objective))
    least = {what: min(found, key=sum) for what, found in runs.items()}
    theirs = least.pop("Optuna")
    return [_cpu_row(f"CPU a bare trial, random, memory store{how}", cpu, theirs, "1.10") for how, cpu in least.items()]


def _cpu_row(what: str, ours: Cpu, theirs: Cpu, asked: str) -> Row:
    return Row(what, f"{sum(ours):.0f} us", f"{sum(theirs):.0f} us", f"{sum(ours) / sum(theirs):.2f}", asked)


class _Synced(optuna.storages.InMemoryStorage):
    """Optuna's, with what durability costs on this file system: plain Optuna on a directory pays it twice a trial."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        path.mkdir(parents=True)
        self._folder, self._names = path, itertools.count()

    def _sync(self) -> None:
        """What our directory store does for a commit: a symbolic link, and a sync of its folder."""
        (self._folder / f"{next(self._names):020d}").symlink_to("x" * 200)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = super().create_new_trial(study_id, template_trial)
        self._sync()
        return trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        done = super().set_trial_state_values(trial_id, state, values)
        self._sync()
        return done


class Cpu(NamedTuple):
    """Microseconds of processor time a trial, of all threads."""

    own: float
    kernel: float


def _fresh(kind: str, directory: Path, name: str) -> optuna.storages.BaseStorage:
    return hopaas_p2p.open_storage(f"memory://{name}" if kind == "memory" else str(directory / name))


def _cpu_a_trial(
    storage: optuna.storages.BaseStorage,
    sampler: optuna.samplers.BaseSampler,
    trials: int,
    *,
    fused: bool = False,
    objective: Callable[[optuna.Trial], float] = _objective,
) -> Cpu:
    optimize = _optimize(storage, sampler, fused=fused)
    gc.collect()  # what earlier runs left is not collected in this one
    before = resource.getrusage(resource.RUSAGE_SELF)
    optimize(objective, n_trials=trials)
    after = resource.getrusage(resource.RUSAGE_SELF)
    if isinstance(storage, Storage):
        storage.close()  # its thread is not to work while the next one is measured
    scale = 1e6 / trials
    return Cpu((after.ru_utime - before.ru_utime) * scale, (after.ru_stime - before.ru_stime) * scale)


def _optimize(
    storage: optuna.storages.BaseStorage, sampler: optuna.samplers.BaseSampler, *, fused: bool
) -> Callable[..., None]:
    """`optimize` of a new study: ours, or Optuna's on this storage."""
    pruner = optuna.pruners.MedianPruner()
    if fused:
        return hopaas_p2p.open_study(storage, "s", sampler=sampler, pruner=pruner).optimize
    return optuna.create_study(storage=storage, sampler=sampler, pruner=pruner).optimize


def _bytecodes(directory: Path) -> list[Row]:
    """Instructions of Python's that a trial executes: a busy machine does not change them, as it changes a time."""
    counts: dict[str, float] = {}
    for how in ("Optuna", "", ", Study.optimize"):
        ours = _fresh("memory", directory, f"bytecodes{how}")
        storage = optuna.storages.InMemoryStorage() if how == "Optuna" else ours
        optimize = _optimize(storage, optuna.samplers.RandomSampler(seed=1), fused=how == ", Study.optimize")
        optimize(_objective, n_trials=_COUNTED)
        executed = 0

        def trace(frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal executed
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            executed += event == "opcode"
            return trace

        sys.settrace(trace)
        try:
            optimize(_objective, n_trials=_COUNTED)
        finally:
            sys.settrace(None)
        ours.close()
        counts[how] = executed / _COUNTED
    theirs, what = counts.pop("Optuna"), "bytecodes per trial, random, memory store"
    return [Row(what + how, f"{own:.0f}", f"{theirs:.0f}", f"{own / theirs:.2f}", "") for how, own in counts.items()]


def machine() -> str:
    """What the figures were measured on."""
    memory = psutil.virtual_memory().total / 2**30
    return f"{psutil.cpu_count()} cores, {memory:.0f} GiB, Python {sys.version.split()[0]}, Optuna {optuna.__version__}"


def main() -> str:
    with tempfile.TemporaryDirectory(prefix="bench-", dir=Path.cwd()) as directory:
        table = rows(Path(directory))
    lines = ["| what | hopaas_p2p | Optuna | ratio | asked |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in table]
    return "\n".join(lines)


if __name__ == "__main__":
    print(machine())
    print(main())
