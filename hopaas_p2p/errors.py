"""The errors that this package raises: what happened, whether retrying helps, and what to do next.

The caller can fix some errors, such as a wrong call, a wrong setting, or a study that does not exist. Others come from
outside, such as a store that cannot be reached, or a lease that another peer took over. Content written by other peers
never raises, because `apply` refuses and counts it.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, ClassVar, Final, Self

ASK_FOR_ANOTHER: Final = (
    "Ask an administrator of the store for a new one (hopaas-p2p admin token create USER), and set "
    "HOPAAS_TOKEN_FILE to its file. If you joined with an invitation, ask its sender for another"
)
"""The advice about a token that is not valid."""


_UNSAFE: Final = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_SELECTORS: Final = (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
_INVISIBLE: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0").union(map(chr, _SELECTORS))
"""Letters and marks that are invisible, although their categories are those of visible characters."""


def visible(text: str, *, keep: str = "") -> str:
    r"""The text with escapes such as `\u200b` for control and invisible characters, except those in `keep`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if one in keep or is_seen(one) else escaped(one) for one in text)


def is_seen(character: str) -> bool:
    """Whether a reader sees this character, or the space that it takes."""
    return unicodedata.category(character) not in _UNSAFE and character not in _INVISIBLE


def escaped(character: str) -> str:
    """The character's number, as Python writes it in a string."""
    return f"\\u{ord(character):04x}" if ord(character) < 1 << 16 else f"\\U{ord(character):08x}"


class HopaasError(Exception):
    """Something went wrong in hopaas_p2p."""

    retry: ClassVar[bool] = False
    """Whether the same call may succeed later without any change."""
    exit_code: ClassVar[int] = 1
    """The exit code of the command line."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(visible(message or (type(self).__doc__ or "").strip().splitlines()[0], keep="\n\t"))
        handled = sys.exception()
        if isinstance(handled, HopaasError):
            self.__cause__ = beneath(handled)

    def raised_here(self) -> Self:
        """This error of another thread, to be raised here, with the error handled here as its cause if it has none."""
        self.__cause__ = self.__cause__ or beneath(sys.exception())
        return self

    def __str__(self) -> str:
        """The message; a KeyError would quote it."""
        return Exception.__str__(self)


def beneath(error: BaseException | None) -> BaseException | None:
    """The first cause of our error that is not one of our errors; None if there is none.

    With it, a traceback shows the last error and the exception that it arose from. Each attempt to send queued records
    may raise the same error again, and all of them would fill several screens.
    """
    while isinstance(error, HopaasError):
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return error


class InvalidInput(HopaasError, ValueError):
    """A value given to this call is not allowed."""

    exit_code = 2


class InvalidType(InvalidInput, TypeError):
    """An argument of this call has the wrong type."""


class NoSuchParameter(InvalidInput, KeyError):
    """This trial has no parameter of that name."""


class ConfigurationError(HopaasError):
    """A setting, URL or store cannot be used as it is; change it and start again."""

    exit_code = 78


class NewerFormat(ConfigurationError):
    """This store was written by a newer hopaas_p2p; upgrade hopaas_p2p on this machine."""


class StoreCorrupt(HopaasError):
    """The store holds bytes that this package did not write; nothing was changed. Run: hopaas-p2p doctor URL."""

    exit_code = 78


class BrokenChain(StoreCorrupt):
    """This log differs from what this process has read, so the process stops writing. Run: hopaas-p2p doctor URL."""


class StoreUnreachable(HopaasError):
    """The store did not answer; nothing is lost, and queued records are sent at the next contact."""

    retry = True
    exit_code = 69
    queued: bool = False
    """Whether the requested change is queued in this process, to be sent at the next contact."""


class StoreAway(StoreUnreachable):
    """The file system of this store is not mounted here now; nothing was created in its place."""

    exit_code = 75


class NoStore(ConfigurationError):
    """There is no store in this directory."""


class BehindRetention(StoreUnreachable):
    """Commits that this process had not read were removed; it joins again from a snapshot."""


class NoSuchStudy(HopaasError, KeyError):
    """This store has no study of that name; list its studies with: hopaas-p2p study list."""


class StudyDeleted(NoSuchStudy):
    """This study was deleted while this process was using it."""


class StudyExists(HopaasError):
    """A study of that name already exists; join it with open_study, or choose another name."""


class DefinitionMismatch(ConfigurationError):
    """The study exists with another definition; use the stored one, or choose another name."""


class NoSuchTrial(HopaasError, KeyError, ValueError):
    """This study has no trial of that number. Optuna's readers raise KeyError, and its `tell` ValueError."""


class NoSuchFile(InvalidInput):
    """This study has no file of that id or name; list its files with: hopaas-p2p trial artifact ls."""

    exit_code = 1


class TooFewTrials(InvalidInput):
    """The study has too few finished trials for this yet; run more trials first."""

    exit_code = 1


class NotYourTrial(HopaasError):
    """Only the peer that runs a trial may change it, and only until it is finished."""


class LeaseLost(HopaasError):
    """Another peer took this trial over; a complete result was kept as a separate trial."""

    exit_code = 11

    def __init__(self, message: str | None = None, *, kept_as: int | None = None) -> None:
        super().__init__(message)
        self.kept_as = kept_as
        """Number of the trial that keeps the late result, if there is one."""


class NoWork(HopaasError):
    """The study starts no trial now."""

    exit_code = 3

    def __init__(self, reason: str, found: Any) -> None:
        super().__init__(f"No trial to run: {reason}.")
        self.reason = reason
        self.found = found
        """The `Wait` or `Done` of `core.admission.next_start`: whether work may turn up, and from which trials."""

    @property
    def refusal(self) -> str:
        """A key of `core.state.REFUSALS`, such as budget or paused; "space" where every configuration was tried."""
        return str(self.found.why)

    @property
    def waits(self) -> bool:
        """Whether `optimize` and the worker wait for work to turn up."""
        return bool(self.found.waits)


class NothingSucceeded(HopaasError):
    """All trials of this call of `optimize` failed, so it gave up; see: hopaas-p2p trial list --state fail."""


class WorkersLost(HopaasError):
    """The workers of an executor ended one after the other, without finishing a trial."""


class StudyFinished(HopaasError):
    """This study starts no more trials, so one that is queued now would never run; resume it first."""

    exit_code = 3


class Denied(HopaasError):
    """The store does not let this user do that; ask the study's owner for a grant."""

    exit_code = 77


GUEST: Final = "is the guest of one study: it can neither create nor delete studies, nor take part in another"
"""Why a guest is refused elsewhere; the schema of Postgres has the same words."""

MOUNTED_READ_ONLY: Final = "this node can read studies, but not take part; mount the file system for writing"
"""The advice about a file system that is mounted for reading only."""

UNDECIDED: Final = (StoreUnreachable, Denied, ConfigurationError, StoreCorrupt)
"""After one of these errors, a record has no verdict yet, and may be sent later, once the cause is fixed."""

TEMPORARY: Final = frozenset(
    {
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EINTR, errno.EBUSY),
        *(errno.ESTALE, errno.EIO, errno.EREMOTEIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENODEV, errno.ENOLCK),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNRESET, errno.ECONNREFUSED),
    }
)
"""Temporary errors of the operating system, as when this process or a file server is short of a resource."""
NO_THREAD: Final = "can't start new thread"
"""Python's message, in a RuntimeError without a number, when this user is short of processes."""


@contextlib.contextmanager
def waits_for(what: str, kind: type[StoreUnreachable] = StoreUnreachable) -> Iterator[None]:
    """Turn temporary errors of this block, which uses files or starts threads, into ours, so that calls are retried.

    Raises:
        StoreUnreachable: `what` cannot be used at the moment.
        OSError: any other error of the operating system, which the caller explains.

    """
    try:
        yield
    except OSError as error:
        if error.errno not in TEMPORARY:
            raise
        raise kind(f"{what} cannot be used at the moment: {error.strerror}.") from error
    except RuntimeError as error:
        if str(error) != NO_THREAD:
            raise
        raise kind(f"{what} cannot be used at the moment: no thread can be started.") from error


@contextlib.contextmanager
def explained(what: str, cure: str = "", *, kind: type[HopaasError] = ConfigurationError) -> Iterator[None]:
    """In this block, an error of the operating system, or of text that is not UTF-8, becomes one of ours.

    The message is `what`, the cause, and `cure`.
    """
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:  # the latter's message would show a part of the text
        why = error.strerror or error if isinstance(error, OSError) else "it is not UTF-8 text"
        raise kind(f"{what}: {why}{cure}") from None


BY_NAME: Final[dict[str, type[HopaasError]]] = {
    name: one
    for name, one in dict(globals()).items()
    if isinstance(one, type) and issubclass(one, HopaasError) and one is not NoWork
}
"""The errors that another process raises again from their names and messages."""
