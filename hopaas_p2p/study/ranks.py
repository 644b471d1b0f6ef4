"""A trial whose training runs on several ranks: processes that are started together, for example by torchrun or mpirun.

Every rank runs the same lines. Only the first one has the trial and talks to the store; its decisions, and the store's
replies, reach the others through a channel of their launcher, in the order in which all of them ask. So each rank must
make the same calls on its trial, as with any collective operation. Each message names its call, and a rank that makes a
different call raises an error. The channel is the key-value store at MASTER_ADDR and MASTER_PORT, which torchrun's
agent runs, or `torch.distributed` once it has been initialized from the environment; for programs that use mpi4py, it
is a communicator.

An error in a collective operation may mean only that another rank was killed. So a rank with such an error first gives
the launcher time to end it, and then the trial is run again. A rank whose channel is gone ends by itself.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec
import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution

from hopaas_p2p import errors
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.runtime.interrupts import describe, interruptions
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.study.trial import Objective, Trial
from hopaas_p2p.translate import as_python

_MEETING: Final = timedelta(seconds=30)  # how long the first rank waits for the others to arrive
_LOOK: Final = timedelta(seconds=5)  # the longest delay of a signal while this rank waits for another
_ENDING: Final = 10.0  # seconds within which a launcher ends the other ranks; torchrun checks every 0.1 to 5 s
_OF_OTHERS: Final = ("torch.distributed", "mpi4py.MPI")
"""Modules of the errors that another rank's end may cause; with gloo, the error is a plain RuntimeError."""
_BREATH: Final = 0.2  # seconds between two checks of the channel during that time
_BEHIND: Final = 64  # messages by which a rank may lag behind the first
_PARTS: Final = b"hopaas-ranks\n"
"""The beginning of a checkpoint that has one part per rank."""
_ON_ALL: Final = "_hopaas_on_all_ranks"

_ERRORS: Final[dict[str, type[Exception]]] = {**errors.BY_NAME, "TrialPruned": optuna.TrialPruned}
"""What a trial's call may raise on every rank; anything else becomes a RuntimeError there."""
_encode: Final = msgspec.msgpack.Encoder(enc_hook=as_python).encode
_decode: Final = msgspec.msgpack.Decoder().decode


class Ranks:
    """The processes of one training run; this one is `rank` of `size`. A process by itself is rank 0 of 1.

    Values consist of numbers, strings, bytes, lists and mappings. Pickles are not used, because a launcher's
    channel is open to anybody who can reach its port.
    """

    rank = 0
    size = 1

    def broadcast(self, call: str, value: Any) -> Any:
        """The first rank's value, on every rank. Blocks the others until it is there.

        Raises:
            InvalidInput: the first rank makes another call than this rank.

        """
        theirs, value = _decode(self._broadcast(_encode((call, value if self.rank == 0 else None))))
        if theirs != call:
            raise InvalidInput(
                f"the first rank is at {theirs}, and rank {self.rank} at {call}. Let every rank make the same calls on "
                "its trial, in the same order: no call may depend on the rank"
            )
        return value

    def gather(self, call: str, value: Any) -> list[Any]:
        """Every rank's value, on the first rank, which blocks until all are there; an empty list on the others."""
        self.broadcast(call, None)
        return [_decode(one) for one in self._gather(_encode(value))]

    def linger(self, error: Exception) -> None:
        """If another rank's end may have caused this error, give the launcher time to end this process, too."""
        if _is_on_all(error) or (type(error) is not RuntimeError and type(error).__module__ not in _OF_OTHERS):
            return
        end = time.monotonic() + _ENDING
        while time.monotonic() < end:
            try:
                self._look()
            except RuntimeError:
                raise SystemExit("the launcher of this training has ended") from None
            time.sleep(_BREATH)

    def meet(self) -> bool:
        """Whether every rank calls `optimize`, which calls this. The first rank waits for the others for up to 30 s.

        Raises:
            InvalidInput: this rank came later, so the first one began without it.

        """
        return True

    def call(self, name: str, do: Callable[[], Any]) -> Any:
        """Run `do`, the trial's method of this name, on the first rank; every rank gets its result, or its error."""
        value, kind, text, error = None, "", "", None
        if self.rank == 0:
            try:
                value = do()
                _encode(value)
            except Exception as raised:  # noqa: BLE001  # it is raised on every rank
                value, kind, text, error = None, type(raised).__name__, str(raised), raised
        value, kind, text = self.broadcast(f"trial.{name}", (value, kind, text))
        if kind:
            error = error or _ERRORS.get(kind, RuntimeError)(text)
            setattr(error, _ON_ALL, True)
            raise error
        return value

    def _look(self) -> None:
        """Raise RuntimeError if the launcher's channel no longer exists."""

    def _broadcast(self, data: bytes) -> bytes:
        return data

    def _gather(self, data: bytes) -> list[bytes]:
        return [data]


class _StoreRanks(Ranks):
    """Numbered messages in the key-value store with which `torch.distributed` finds its peers."""

    def __init__(self, env: Mapping[str, str]) -> None:
        dist: Any = importlib.import_module("torch.distributed")
        self.rank, self.size = int(env["RANK"]), int(env["WORLD_SIZE"])
        store = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False, timeout=_LOOK)
        self._store: Any = dist.PrefixStore(f"hopaas/{env.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        self._not_yet: type[Exception] = dist.DistStoreError
        self._sent = self._gathered = 0
        self._together: bool | None = None

    def meet(self) -> bool:
        if self._together is None and self.rank == 0:
            others = [f"rank {rank} is here" for rank in range(1, self.size)]
            self._together = True
            try:
                self._store.wait(others, _MEETING)
            except self._not_yet:
                self._together = False
                LOG.warning("the other ranks did not call optimize in time, so the first rank runs its trials alone")
            self._store.set("begun", b"together" if self._together else b"alone")
        elif self._together is None:
            self._store.set(f"rank {self.rank} is here", b"")
            self._wait("begun")
            self._together = self._store.get("begun") == b"together"
            if not self._together:
                raise InvalidInput(
                    f"the first rank waited {_MEETING.seconds} s for rank {self.rank} and began without it. Let every "
                    "rank call optimize at the same place in the program, and start it again"
                )
        return self._together

    def _look(self) -> None:
        self._store.check(["begun"])

    def _broadcast(self, data: bytes) -> bytes:
        number, self._sent = self._sent, self._sent + 1
        if self.rank == 0:
            self._store.set(f"{number}", data)
            if number >= _BEHIND:
                self._taken(f"{number - _BEHIND} was read")
                self._store.delete_key(f"{number - _BEHIND}")
            return data
        self._wait(f"{number}")
        data = self._store.get(f"{number}")
        if self._store.add(f"{number} readers", 1) == self.size - 1:
            self._store.set(f"{number} was read", b"")
            self._store.delete_key(f"{number} readers")
        return data

    def _gather(self, data: bytes) -> list[bytes]:
        number, self._gathered = self._gathered, self._gathered + 1
        if self.rank:
            self._store.set(f"{number} of rank {self.rank}", data)
            return []
        return [data, *[self._taken(f"{number} of rank {rank}") for rank in range(1, self.size)]]

    def _taken(self, key: str) -> bytes:
        self._wait(key)
        value: bytes = self._store.get(key)
        self._store.delete_key(key)
        return value

    def _wait(self, key: str) -> None:
        """Wait for another rank, however long its trial takes. A signal is handled within 5 s."""
        while True:
            with contextlib.suppress(self._not_yet):
                self._store.wait([key], _LOOK)
                return


class MpiRanks(Ranks):
    """The ranks of an mpi4py communicator. Every rank must construct this, because it duplicates the communicator."""

    def __init__(self, world: Any) -> None:
        self._ours = world.Dup()
        self.rank, self.size = self._ours.Get_rank(), self._ours.Get_size()

    def _broadcast(self, data: bytes) -> bytes:
        return self._ours.bcast(data, root=0)  # type: ignore[no-any-return]

    def _gather(self, data: bytes) -> list[bytes]:
        return self._ours.gather(data, root=0) or []


_known: list[Ranks] = []


def ranks() -> Ranks:
    """The ranks that torchrun, or a similar launcher, started; only this process if it cannot reach the others now."""
    env, dist = os.environ, sys.modules.get("torch.distributed")
    if not _known and env.get("WORLD_SIZE", "1") != "1" and env.keys() >= {"RANK", "MASTER_ADDR", "MASTER_PORT"}:
        initialized = dist is not None and dist.is_available() and dist.is_initialized()
        if initialized or env.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            _known.append(_StoreRanks(env))
    return _known[0] if _known else Ranks()


class RankedTrial:
    """A trial on one of several ranks. It has all that `Trial` has, computed on the first rank and sent to the others.

    Every rank makes the same calls in the same order, from the constructor on. Each call costs a message, and raises on
    every rank what it raises on the first; `number` and `params` cost none.

    Args:
        trial: the first rank's; None on the others.
        among: the ranks.

    """

    params: dict[str, Any]

    def __init__(self, trial: Trial | None, among: Ranks) -> None:
        self._trial, self.ranks = trial, among
        self._resume: tuple[int, Path] | None = None
        self._looked = False
        known = {name: getattr(trial, name) for name in ("number", "params") if hasattr(trial, name)}
        vars(self).update(among.broadcast("the beginning of a trial", known))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if callable(getattr(Trial, name)):
            return functools.partial(self._call, name)
        return self.ranks.call(name, lambda: getattr(self._trial, name))

    def _call(self, method: str, /, *given: Any, **named: Any) -> Any:
        value = self.ranks.call(method, lambda: getattr(self._trial, method)(*given, **named))
        if method.startswith("suggest_"):
            self.params[given[0] if given else named["name"]] = value
        return value

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The distributions of the parameters so far."""
        texts = self.ranks.call(
            "distributions", lambda: {key: distribution_to_json(one) for key, one in self._first.distributions.items()}
        )
        return {name: json_to_distribution(text) for name, text in texts.items()}

    def prune(self) -> NoReturn:
        """End this trial as PRUNED, on every rank that calls it."""
        raise optuna.TrialPruned

    def checkpoint(self, source: str | Path | bytes, *, step: int, each_rank: bool = False, wait: bool = True) -> None:
        """Store the first rank's checkpoint, as `Trial.checkpoint` does; with `each_rank`, one part per rank.

        The parts are gathered on the first rank, which briefly holds all of them, into one checkpoint.
        """
        if each_rank:
            part = source if isinstance(source, bytes) else Path(source).read_bytes()
            source = _PARTS + msgspec.msgpack.encode(self.ranks.gather("trial.checkpoint", part))
        how = {} if wait else {"wait": False}
        self.ranks.call("checkpoint", lambda: self._first.checkpoint(source, step=step, **how))

    @property
    def resume(self) -> tuple[int, Path] | None:
        """(step, local file) of the newest whole checkpoint of an earlier attempt, or None, like `Trial.resume`.

        The file is this rank's copy, or its part of a checkpoint with one part per rank.

        Raises:
            InvalidInput: the checkpoint has parts for a different number of ranks.

        """
        if not self._looked:
            found = self.ranks.call("resume", lambda: (at := self._first.resume) and (at[0], at[1].read_bytes()))
            self._looked = True
            if found is not None:
                step, data = found
                folder = tempfile.TemporaryDirectory(prefix="hopaas-resume-")
                weakref.finalize(self, folder.cleanup)
                self._resume = step, Path(folder.name, "checkpoint")
                self._resume[1].write_bytes(self._part(data))
        return self._resume

    def _part(self, data: bytes) -> bytes:
        if not data.startswith(_PARTS):
            return data
        parts = msgspec.msgpack.decode(data[len(_PARTS) :], type=list[bytes])
        if len(parts) != self.ranks.size:
            raise InvalidInput(
                f"the checkpoint has parts of {len(parts)} ranks, not {self.ranks.size}; train on as many as before"
            )
        return parts[self.ranks.rank]

    @property
    def _first(self) -> Trial:
        assert self._trial is not None
        return self._trial


_NEXT: Final = "the next trial"
_END: Final = "the end of a trial"


@contextlib.contextmanager
def leading(objective: Objective, among: Ranks, lose: Callable[[int, str], None]) -> Iterator[Objective]:
    """The objective to run on the first rank, which makes the others run it, too; after the block, they stop.

    An error that only this rank has ends its process, because the others may be blocked in a collective operation. If
    the launcher ends this process first, another rank's end caused the error, and `lose` is called with the trial's
    number and the error.
    """

    def run(trial: Trial) -> Any:
        try:
            among.broadcast(_NEXT, trial.storage.peer.uuid)
            return _to_its_end(objective, RankedTrial(trial, among))
        except Exception as error:
            try:
                among.linger(error)
            except interruptions():
                lose(trial.number, describe(error))
                raise
            raise

    def finish() -> None:
        among.broadcast(_NEXT, None)
        among.gather(_END, None)  # the channel may end with this process

    with _in_step(finish):
        yield run


def follow(objective: Objective, among: Ranks, fail: Callable[[str, int, str], None]) -> None:
    """On another rank, run the objective for each trial of the first rank.

    An error that only this rank has ends its process, after `fail` was called with the trial's owner and number, and
    the reason.
    """
    while (owner := among.broadcast(_NEXT, None)) is not None:
        trial = RankedTrial(None, among)
        try:
            _to_its_end(objective, trial)
        except Exception as error:
            if not _is_on_all(error):
                among.linger(error)
                fail(owner, trial.number, f"rank {among.rank}: {describe(error)}")
                raise
    among.gather(_END, None)


def _to_its_end(objective: Objective, trial: RankedTrial) -> Any:
    """Run the objective on this rank, and wait until it has ended on all."""
    with _in_step(lambda: trial.ranks.gather(_END, None)):  # if a rank failed, the launcher ends this one
        return objective(trial)  # type: ignore[arg-type]


@contextlib.contextmanager
def _in_step(finish: Callable[[], Any]) -> Iterator[None]:
    """Call `finish` after the block, unless an error has ended the block on this rank only."""
    try:
        yield
    except Exception as error:
        if _is_on_all(error):
            finish()
        raise
    finish()


def _is_on_all(error: Exception) -> bool:
    """Whether every rank gets this error in the same call."""
    return isinstance(error, optuna.TrialPruned) or getattr(error, _ON_ALL, False)


def together(devices: list[tuple[str, dict[str, str], list[str] | None]]) -> dict[str, str]:
    """The devices of all ranks. A GPU that several ranks of a node see counts once."""
    hosts = dict.fromkeys(host for host, _, _ in devices)
    total = {"gpus": 0.0, "cores": 0.0}
    for host in hosts:
        here = [(said, seen) for at, said, seen in devices if at == host]
        total["cores"] += max(float(said["cores"]) for said, _ in here)
        names = {name for _, seen in here for name in seen or ()}
        total["gpus"] += len(names) or max(float(said.get("gpus", 0)) for said, _ in here)
    return {name: f"{count:g}" for name, count in total.items() if count}
