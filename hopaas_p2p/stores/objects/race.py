"""Tests whether `put_new` has one winner, among several concurrent writers of one key and against a later one.

The test detects three kinds of faulty servers. A server that ignores the condition accepts the later write. A server
that checks first and then writes refuses the later write, but lets several concurrent writers win. A server that picks
a random place for each object, and looks for an older object only there, does either now and then, so the test uses
many fresh keys.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from typing import Final, NamedTuple

from hopaas_p2p.errors import Denied, HopaasError, StoreUnreachable
from hopaas_p2p.net.findings import Finding
from hopaas_p2p.runtime.parallel import each
from hopaas_p2p.stores.objects.contract import ObjectStore

RACERS: Final = 8
KEYS: Final = 12
"""A server with two places for objects passes a test of 12 keys, each written twice in turn, once in 4,096 times."""
_AT_ONCE: Final = 16  # the most concurrent writes
_START_TIMEOUT: Final = 30.0  # seconds for which racers wait for each other


class Evidence(NamedTuple):
    """The result of a test with fresh keys."""

    seen: str
    """The violations, and how often each occurred; empty if none."""
    held: int
    """The number of keys that certainly had one winner."""
    unknown: StoreUnreachable | None
    """Why nothing is known about some keys; None if all were tested."""

    def finding(self, cure: str) -> Finding:
        """The evidence as a finding for the doctor. Raises StoreUnreachable if nothing is known."""
        if not self.seen and not self.held:
            raise self.unknown or StoreUnreachable
        well = f"{RACERS} writers at once, {KEYS} times: exactly one winner each"
        return Finding("race", self.seen or well, passed=not self.seen, cure=cure)


def race(objects: ObjectStore, prefix: str, *, keys: int = KEYS, writers: int = RACERS, look: bool = True) -> Evidence:
    """Write fresh keys, each concurrently and then once more. One write may succeed per key, and its bytes must be
    there.

    Args:
        objects: where to write.
        prefix: the prefix of the keys, which are removed at the end if that is allowed.
        keys: how many keys to write.
        writers: concurrent writers per key.
        look: whether to read each key after all writes, and compare the bytes.

    Raises:
        Denied: this user may not write there.
        ConfigurationError: the server refuses such requests.

    """
    names = [f"{prefix}{secrets.token_hex(12)}" for _ in range(keys)]
    gates = {name: threading.Barrier(writers) for name in names}
    here = threading.get_ident()

    def put(racer: tuple[str, int]) -> bool | HopaasError:
        name, number = racer
        if number < writers and threading.get_ident() != here:  # if no thread can be started, racers run one by one
            with contextlib.suppress(threading.BrokenBarrierError):
                gates[name].wait(_START_TIMEOUT)
        try:
            return objects.put_new(name, b"racer %d" % number)
        except HopaasError as error:  # raised below, because raising here would leave others waiting at the gate
            return error

    def start(racers: list[tuple[str, int]]) -> list[bool | HopaasError]:
        results = each(put, racers, at_once=_AT_ONCE)
        for one in results:
            if isinstance(one, HopaasError) and not isinstance(one, StoreUnreachable):
                raise one
        return results

    try:
        raced = start([(name, number) for name in names for number in range(writers)])
        later = start([(name, writers) for name in names])
        found = objects.get_many(names, limit=64) if look else [None] * keys
    finally:
        with contextlib.suppress(Denied, StoreUnreachable):
            objects.delete(names)
    flaws: list[str] = []
    held, unknown = 0, None
    for place, (again, there) in enumerate(zip(later, found, strict=True)):
        results = [*raced[place * writers : (place + 1) * writers], again]
        unknown = next((one for one in (*results, there) if isinstance(one, StoreUnreachable)), unknown)
        winners = [number for number, result in enumerate(results) if result is True]
        may_be = winners or [number for number, result in enumerate(results) if result is not False]
        flaw = None
        if again is True and len(winners) > 1:
            flaw = "a second write was accepted after the first was acknowledged"
        elif len(winners) > 1:
            flaw = f"{len(winners)} writers were told that they won"
        elif look and there is None and winners:
            flaw = "the object is missing after a write was accepted: the server is not consistent"
        elif look and isinstance(there, tuple) and there.data not in [b"racer %d" % number for number in may_be]:
            flaw = "the stored object is not the winner's"
        flaws += [flaw] if flaw else []
        held += flaw is None and again is False
    return Evidence(f"{flaws[0]} ({len(flaws)} of {keys} keys)" if flaws else "", held, unknown)
