"""The errors of the original under their original names. The `__cause__` of each is our own error, which has more
details.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hopaas_p2p import errors


class HopaasError(RuntimeError):
    """Something went wrong between this script and the study."""


class HopaasServerError(HopaasError):
    """The store cannot be reached, or cannot be used as it is."""


class HopaasConsistencyError(HopaasError):
    """The call does not fit the state of the study or trial."""


class NoMoreTrials(HopaasError, SystemExit):
    """The study starts no more trials, because its budget is used up, or because it was paused or stopped.

    The original had no such error. A script that does not catch it (`while True: with study.trial() …`) ends with exit
    code 0, as after `sys.exit()`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = 0


_SERVER = (errors.StoreUnreachable, errors.ConfigurationError, errors.StoreCorrupt, errors.Denied)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise the original's errors in place of ours inside this block."""
    try:
        yield
    except errors.HopaasError as error:
        raise translation(error) from error


def translation(error: errors.HopaasError) -> HopaasError:
    """The original's counterpart of our error."""
    if isinstance(error, errors.NoWork):
        return NoMoreTrials(str(error))
    return (HopaasServerError if isinstance(error, _SERVER) else HopaasConsistencyError)(str(error))
