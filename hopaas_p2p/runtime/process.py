"""Which process this is, and what happens when it forks and when it ends.

Only this module registers what Python does at a fork. The locks of all logs are held during the fork, so that
the child finds every state consistent. These locks are taken in one order, before any other lock, because a thread that
reports holds its log's lock and may then need others. Peers send or spool their records when the process ends, even in
a child of `multiprocessing`, which does not run `atexit`.

A process that was copied without Python's knowledge (by `fork` in C, as R's mclapply does) notices at its next call
that its pid has changed.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import os
import secrets
import weakref
from collections.abc import Callable, Container
from multiprocessing import util
from typing import Any, Final, Generic, TypeVar

from hopaas_p2p.runtime.interrupts import INTERRUPTIONS

T = TypeVar("T")
_FINALIZER_PRIORITY: Final = 100  # among the finalizers of multiprocessing: before its queues and managers are closed

# --- identity ---


def new_uuid() -> str:
    """16 characters, 96 random bits: unique without coordination, and short enough for every commit."""
    return secrets.token_urlsafe(12)


# --- forks ---


_in_child: Final[list[Callable[[], object]]] = []


def call_in_child(hook: Callable[[], object]) -> None:
    """Call `hook` in every forked child from now on, since a module's threads, locks and sockets are the parent's."""
    _register()
    _in_child.append(hook)


class once(Generic[T]):  # noqa: N801  # as `property`
    """`functools.cached_property` without the lock that it has in Python 3.11, but no longer in 3.12.

    The lock of 3.11 is shared by all objects. A forked child waits for it forever if a thread of its parent was
    computing the value for any of them. Here, two threads may both compute the value; both get the one that is stored
    first.
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    def __get__(self, instance: Any, _owner: type | None = None) -> T:
        value: T = instance.__dict__.setdefault(self._make.__name__, self._make(instance))
        return value


_renewable: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


def renew_in_child(one: Any) -> None:
    """Call this object's `renew` in a forked child, where no thread would ever release its lock or finish its work."""
    _renewable.add(one)


@functools.cache
def _register() -> None:
    """Register the hooks at a fork, when a store is opened and not when this module is imported.

    Hooks registered last run first before a fork. So the locks of logs are taken before those of every module that was
    imported earlier, such as logging's, which a thread that holds a log's lock may need. Also, filelock refuses forks
    (RuntimeError, from Python 3.12 on) while another thread is between filelock's own hooks, so no thread should wait
    for a log there.
    """
    os.register_at_fork(before=before_fork, after_in_parent=after_fork_in_parent, after_in_child=after_fork_in_child)


_peers: Final[weakref.WeakSet[Any]] = weakref.WeakSet()
"""The `Peer`s of this process, whose package is in a higher layer."""
_held: Final[list[Any]] = []
"""The peers' logs that are locked for a fork."""


def remember(peer: Any) -> None:
    """Make this peer survive a fork, and send or spool its records when the process ends."""
    _register()
    if multiprocessing.parent_process() is not None:
        _finalize(os.getpid())
    _peers.add(peer)


def running(uuids: Container[str]) -> list[Any]:
    """The peers of this process with one of these names."""
    return [peer for peer in list(_peers) if peer.uuid in uuids]


def before_fork() -> None:
    """Wait until no thread is changing a session, and lock all sessions."""
    logs = [log for peer in list(_peers) for log in peer.all_logs()]
    logs.sort(key=id)  # two threads that fork at once must not wait for each other
    for log in logs:
        log.lock.acquire()
    _held.extend(logs)


def after_fork_in_parent() -> None:
    """Release the locks that `before_fork` took."""
    logs = _held.copy()
    _held.clear()  # before the first release, after which another thread may fork
    for log in logs:
        log.lock.release()
    for peer in list(_peers):
        peer.copies_made += 1


def after_fork_in_child() -> None:
    """Let every peer continue as a new one, with locks of its own."""
    _held.clear()
    for peer in list(_peers):
        peer.become_child()
    for one in list(_renewable):
        one.renew()
    for hook in _in_child:
        hook()


def _farewell() -> None:
    for peer in list(_peers):
        with contextlib.suppress(*INTERRUPTIONS):  # it ends this peer's wait, not the others'
            peer.say_farewell()


@functools.cache
def _finalize(_pid: int) -> None:
    """Register `_farewell` once per process. A fork server's child imports this module after the hooks have run
    there.
    """
    util.Finalize(None, _farewell, exitpriority=_FINALIZER_PRIORITY)


atexit.register(_farewell)
util.register_after_fork(_farewell, lambda _: _finalize(os.getpid()))
