"""Every error this package raises: what happened, whether trying again helps, and what to do next.

Two families. *Yours to mend*: a wrong call, a wrong setting, a study that is not there. *The world's*: a store that
cannot be reached, a lease that somebody took over. Content written by other peers is in neither: it never raises, it
is refused by `apply` and counted.
"""

from __future__ import annotations

from typing import ClassVar


class HopaasError(Exception):
    """Something went wrong in hopaas_p2p."""

    retry: ClassVar[bool] = False
    """Whether the same call may succeed later without anybody changing anything."""
    exit_code: ClassVar[int] = 1
    """What the command line ends with."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])


class InvalidInput(HopaasError, ValueError):
    """A value given to this call is outside what is allowed."""

    exit_code = 2


class ConfigurationError(HopaasError):
    """A setting, URL or store cannot be used as it is; change it and start again."""

    exit_code = 78


class NewerFormat(ConfigurationError):
    """This store was written by a newer hopaas_p2p; upgrade with: pip install -U hopaas-p2p."""


class StoreCorrupt(HopaasError):
    """The store holds bytes that no writer of ours left there; nothing was changed. Run: hopaas-p2p doctor URL."""

    exit_code = 78


class StoreUnreachable(HopaasError):
    """The store did not answer; nothing is lost, what waits is sent at the next contact."""

    retry = True
    exit_code = 69


class SleptThrough(StoreUnreachable):
    """This process slept while commits it had not read were removed; it joins again from a snapshot."""


class NoSuchStudy(HopaasError, LookupError):
    """There is no study of that name in this store; list them with: hopaas-p2p study list."""


class StudyDeleted(HopaasError):
    """This study was deleted by somebody while this process was using it."""


class StudyExists(HopaasError):
    """A study of that name exists already; join it with open_study, or choose another name."""


class DefinitionMismatch(ConfigurationError):
    """The study exists with another definition; use the stored one, or choose another name."""


class NoSuchTrial(HopaasError, LookupError):
    """There is no trial of that number in this study."""


class NotYourTrial(HopaasError):
    """Only the peer that runs a trial may change it, and only until it is finished."""


class LeaseLost(HopaasError):
    """Another peer took this trial over; a complete result was kept as a separate trial."""

    exit_code = 11

    def __init__(self, message: str | None = None, *, kept_as: int | None = None) -> None:
        super().__init__(message)
        self.kept_as = kept_as
        """Number of the trial that keeps the late result, if there was one to keep."""


class NoWork(HopaasError):
    """The study gives out no trial now."""

    exit_code = 3

    def __init__(self, reason: str, *, refusal: str = "") -> None:
        super().__init__(f"No trial to run: {reason}.")
        self.reason = reason
        self.refusal = refusal
        """The word of `core.state.REFUSALS`: budget, paused, stopped, failing, draining."""


class Denied(HopaasError):
    """The store does not let this user do that; ask the study's owner for a grant."""

    exit_code = 77
