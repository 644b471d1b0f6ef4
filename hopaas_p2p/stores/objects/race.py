"""Whether `put_new` has exactly one winner: of several that write one key at once, and of one that comes later.

Three kinds of servers are told apart here. One that ignores the condition accepts the write that comes later. One that
looks first and writes then refuses that, and has several winners among those that come at once. One that draws a place
for each object by chance, and looks for the old one only there, does either now and then: so it takes many fresh keys.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

from hopaas_p2p.errors import Denied, StoreUnreachable
from hopaas_p2p.net.findings import Finding
from hopaas_p2p.stores.objects.contract import Found, ObjectStore

RACERS: Final = 8
KEYS: Final = 12
"""A server with two places passes 12 keys written twice in turn once in 4,096 times."""
_AT_ONCE: Final = 16  # writes under way, at most
_START_TIMEOUT: Final = 30.0  # seconds for which racers wait for each other
_MINE: Final = b"racer %d"
_LATER: Final = b"one that came later"
_OVERWRITTEN: Final = "a second write was accepted after the first was acknowledged"


class Evidence(NamedTuple):
    """What fresh keys have shown."""

    lost: tuple[str, ...]
    """What was wrong with keys that several were told they had created at once, or that hold something else."""
    overwritten: tuple[str, ...]
    """What was wrong with keys that could be written once more."""
    held: int
    """Keys of which the promise is known to hold."""
    keys: int
    unknown: StoreUnreachable | None = None
    """Why nothing is known of the others."""

    @property
    def seen(self) -> str:
        """What was wrong, and how often; empty if nothing was."""
        return "; ".join(filter(None, (self.told(self.overwritten), self.told(self.lost))))

    def told(self, flaws: tuple[str, ...]) -> str:
        """The first of these, and how many keys have one."""
        return f"{flaws[0]} ({len(flaws)} of {self.keys} keys)" if flaws else ""


def race(objects: ObjectStore, prefix: str, *, cure: str) -> Finding:
    """Many create one key at the same moment, several times: exactly one may succeed, and find its bytes there.

    Args:
        objects: where.
        prefix: of the keys, which are removed in the end.
        cure: what to do if the race is lost.

    """
    found = examine(objects, prefix)
    if not found.seen and not found.held:
        raise found.unknown or StoreUnreachable
    return judged(found, cure=cure)


def judged(found: Evidence, *, cure: str) -> Finding:
    """The race as a finding."""
    well = f"{RACERS} writers at once, {KEYS} times: exactly one winner each"
    return Finding("race", found.seen or well, passed=not found.seen, cure=cure)


def examine(
    objects: ObjectStore, prefix: str, *, keys: int = KEYS, writers: int = RACERS, look: bool = True
) -> Evidence:
    """Write fresh keys, each by several at once and then once more.

    Args:
        objects: where.
        prefix: of the keys, which are removed in the end if that is allowed.
        keys: how many.
        writers: writers at once per key.
        look: whether to read what is there in the end.

    Raises:
        Denied: this user may not write there.
        ConfigurationError: the server refuses such requests.

    """
    names = [f"{prefix}{secrets.token_hex(12)}" for _ in range(keys)]
    lost: list[str] = []
    overwritten: list[str] = []
    held, unknown = 0, None
    with ThreadPoolExecutor(_AT_ONCE) as threads:

        def start(name: str, mine: bytes, gate: threading.Barrier | None = None) -> Future[_Result]:
            try:
                return threads.submit(_put, objects, name, mine, gate)
            except RuntimeError:  # the interpreter is ending and has no more threads: one after the other, then
                done: Future[_Result] = Future()
                done.set_result(_put(objects, name, mine, None))
                return done

        try:
            racing: dict[str, list[_Result]] = {}
            later: dict[str, _Result] = {}
            width = max(_AT_ONCE // writers, 1)
            for some in (names[first : first + width] for first in range(0, keys, width)):
                gates = {name: threading.Barrier(writers) for name in some}
                begun = {name: [start(name, _MINE % one, gates[name]) for one in range(writers)] for name in some}
                racing |= {name: [future.result() for future in futures] for name, futures in begun.items()}
                once_more = {name: start(name, _LATER) for name in some}
                later |= {name: future.result() for name, future in once_more.items()}
            found = objects.get_many(names, limit=64) if look else [None] * keys
            for name, there in zip(names, found, strict=True):
                results = [*racing[name], later[name]]
                errors = [
                    one for one in (*(result for _, result in results), there) if isinstance(one, StoreUnreachable)
                ]
                unknown = errors[-1] if errors else unknown
                winners = sum(result is True for _, result in racing[name])
                flaw = f"{winners} writers were told that they won" if winners > 1 else None
                if look and flaw is None:
                    flaw = _misread(results, there)
                if flaw is not None:
                    lost.append(flaw)
                if later[name][1] is True and winners:
                    overwritten.append(_OVERWRITTEN)
                held += flaw is None and later[name][1] is False
        finally:
            with contextlib.suppress(Denied, StoreUnreachable):
                objects.delete(names)
    return Evidence(tuple(lost), tuple(overwritten), held, keys, unknown)


_Result = tuple[bytes, bool | StoreUnreachable]


def _put(objects: ObjectStore, name: str, mine: bytes, gate: threading.Barrier | None) -> _Result:
    if gate is not None:
        with contextlib.suppress(threading.BrokenBarrierError):
            gate.wait(_START_TIMEOUT)
    try:
        return mine, objects.put_new(name, mine)
    except StoreUnreachable as error:
        return mine, error


def _misread(results: Sequence[_Result], there: Found | StoreUnreachable | None) -> str | None:
    """Whether something else is there than the winner wrote."""
    if isinstance(there, StoreUnreachable):
        return None
    accepted = [mine for mine, result in results if result is True]
    if there is None:
        return "the object is missing after a write was accepted: the server is not consistent" if accepted else None
    may_be = accepted or [mine for mine, result in results if isinstance(result, StoreUnreachable)]
    return None if there.data in may_be else "the stored object is not what the winner wrote"
