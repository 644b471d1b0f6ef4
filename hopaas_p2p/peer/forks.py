"""What happens to the couriers of this process when it forks, and when it ends.

Locks of all replicas are held over a fork, so that the child finds every state whole. They are taken in one order,
and nothing else is held meanwhile: a thread that reports holds its replica's lock and may then want others.
"""

from __future__ import annotations

import atexit
import os
import weakref
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from hopaas_p2p.peer.courier import Courier
    from hopaas_p2p.peer.replica import Replica

_couriers: Final[weakref.WeakSet[Courier]] = weakref.WeakSet()
_held: Final[list[Replica[Any]]] = []


def remember(courier: Courier) -> None:
    """See that this courier outlives a fork, and says farewell when the program ends."""
    _couriers.add(courier)


def before_fork() -> None:
    """Wait until no thread is in the middle of changing a replica, and keep it so."""
    replicas = [replica for courier in list(_couriers) for replica in courier.replicas()]
    replicas.sort(key=id)  # two threads that fork at once do not wait for each other
    for replica in replicas:
        replica.lock.acquire()
    _held.extend(replicas)


def after_fork_in_parent() -> None:
    """Let go."""
    replicas = _held.copy()
    _held.clear()  # before the first release: behind it another thread may be about to fork
    for replica in replicas:
        replica.lock.release()


def after_fork_in_child() -> None:
    """Every courier goes on as a new peer, with locks of its own."""
    _held.clear()
    for courier in list(_couriers):
        courier.become_child()


@atexit.register
def _farewell() -> None:
    for courier in list(_couriers):
        courier.say_farewell()


os.register_at_fork(before=before_fork, after_in_parent=after_fork_in_parent, after_in_child=after_fork_in_child)
