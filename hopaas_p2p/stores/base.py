"""The contract of a store: what every back end promises, and what callers may not expect.

A store holds logs, snapshots, beats and artifacts. It orders commits and keeps them; it knows nothing of what is in
them. All of it is called by one thread at a time a log.

DO    acknowledge a commit only when it would survive kill -9 and a power cut.
DO    give lsns 1, 2, 3, … without gaps, in the one order that every reader sees.
DO    return a commit's own entry among the entries when it was appended, whoever asked.
DO    say `StoreUnreachable` when the outcome is not known. The caller comes again with the same bytes.
DON'T append a commit that stands in (since, head] already: that is the same one, come again.
DON'T retry by yourself for longer than the caller can bear: a few seconds.
DON'T raise on content; bytes in a commit's place that are no commit are returned as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple, Protocol, runtime_checkable

SNAPSHOT_EVERY: Final = 256
"""Whoever commits an lsn divisible by this writes a snapshot."""
SNAPSHOTS_KEPT: Final = 3


class Outgoing(NamedTuple):
    """A commit to append: its bytes as `codec` seals them, with their checksum, and the nonce it is known again by."""

    nonce: str
    payload: bytes


class Entry(NamedTuple):
    """A commit as the log holds it."""

    lsn: int
    payload: bytes
    author: str = ""
    role: str = "owner"
    at: int = 0


class Receipt(NamedTuple):
    """What an exchange brought: the commits after `since`, in order, and whether there are more to fetch."""

    entries: list[Entry]
    more: bool = False


class Beat(NamedTuple):
    """A peer's sign of life. Only its change means something."""

    peer: str
    value: str


class Log(Protocol):
    """The ordered commits of one study, or of the store's catalog."""

    def exchange(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> Receipt:
        """Append a commit, if there is one, and return what comes after `since`: one round trip where that can be.

        Blocks until the commit is durable. With `more`, the commit was appended only if it is among the entries.

        Raises:
            StoreUnreachable: the outcome is not known; come again with the same bytes.
            StoreCorrupt: the log is damaged where no torn write explains it. Nothing was written.
            StudyDeleted: the log was destroyed. Who has seen any of it is told, and writes nothing.

        """

    def changed(self, since: int) -> bool | None:
        """Whether there is something after `since`, if that can be told without a round trip; else None."""

    def newest_snapshot(self, *, before: int | None = None) -> tuple[int, bytes] | None:
        """(lsn, bytes) of the newest snapshot, or of those before one that cannot be read; None if there is none.

        None, too, if there is an older one, but nobody needs it because the log can be replayed from its first commit.
        """

    def put_snapshot(self, lsn: int, data: bytes) -> None:
        """Keep a snapshot, and the two before it. Failing is allowed: a snapshot is only ever a short cut.

        Of several for one lsn any may be kept: all who have that lsn have the same state.
        """

    def destroy(self) -> None:
        """Remove the log and its snapshots for ever."""


@runtime_checkable
class Crowded(Protocol):
    """A log whose commits are dear and slow tells its courier how to get by with few of them."""

    @property
    def linger(self) -> float:
        """Seconds for which reports should wait for company: the longer, the more peers lately wrote to it."""

    def approach(self, since: int) -> Receipt:
        """Wait until a commit would be taken at once, as far as can be told; what came after `since` meanwhile.

        Appends nothing. What is queued while this waits goes along with the commit that follows. Raises as `exchange`.
        """


@runtime_checkable
class Revocable(Protocol):
    """A log whose commits wait on their way to it: one that has not arrived can be called back."""

    def withdraw(self, outgoing: Outgoing) -> None:
        """See that this commit is not appended, if that can still be. Whoever calls does not come with it again."""


Progress = Callable[[int], None]
"""Told now and then how many bytes more have been moved."""


class Artifacts(Protocol):
    """Files beside the logs: checkpoints, models, plots. Keys are of our making: letters, digits, `-`, `_` and `/`."""

    def put(self, key: str, source: Path, progress: Progress | None = None) -> None:
        """Store a copy of this file under the key: whole and durable when this returns, or not at all."""

    def get(self, key: str, target: Path, progress: Progress | None = None) -> None:
        """Write what is stored under the key to this file. Raises KeyError when there is nothing."""

    def delete(self, key: str) -> None:
        """Remove it, if it is there."""

    def keys(self, prefix: str) -> list[str]:
        """The keys that begin with the prefix, sorted."""


class Store(Protocol):
    """A shared place."""

    url: str
    """Where it is, without secrets: fit to be shown, stored and opened again."""
    freshness: float
    """Seconds for which a read may rely on the last pull; 0: `Log.changed` is cheap, ask it on every read."""
    beats_ride: bool
    """Whether a beat costs nothing extra inside `exchange`."""
    snapshots: bool
    """Whether a snapshot spares a joiner something: not where the log itself is as near."""

    def catalog(self) -> Log:
        """The directory log."""

    def log(self, uuid: str) -> Log:
        """The log of the study of this uuid; empty if nobody has written to it."""

    def beat(self, beat: Beat) -> None:
        """Overwrite this peer's beat."""

    def beats(self, peers: Iterable[str]) -> dict[str, str]:
        """The beats of these peers, as far as they have any."""

    def artifacts(self) -> Artifacts:
        """Where files are kept. Raises ConfigurationError, with the cure, if this store keeps none."""

    def after_fork(self) -> None:
        """Forget connections and descriptors that the parent process goes on using."""

    def close(self) -> None:
        """Let go of what it holds open; it may be used again."""
