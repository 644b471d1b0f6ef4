"""Names that may become part of a key, a path or a URL, and ids of trials.

A log may be hostile, so a name from a log is checked before it is used.
"""

from __future__ import annotations

import re
from typing import Final

_NUMBER_BITS: Final = 32
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KEY: Final = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_TOKEN: Final = re.compile(r"\.[0-9a-f]{8}$")


def valid_name(text: str) -> bool:
    """Whether the string may name a study (its uuid) or a peer in a store."""
    return _NAME.fullmatch(text) is not None


def user_of(login: str) -> str:
    """The user of a login: a token's login is the user's name with a suffix; any other login is a user's name."""
    return _TOKEN.sub("", login)


def valid_key(text: str) -> bool:
    """Whether the string may be the key of a file in a store: names, separated by slashes."""
    return _KEY.fullmatch(text) is not None


def checked_key(key: str) -> str:
    """The key, if it is valid. Raises KeyError for any other key, as for a file that the store does not have."""
    if not valid_key(key):
        raise KeyError(key)
    return key


NO_REQUEST: Final = "none"
"""The value of the rescue's beat once the rescue is over."""


REQUEST: Final = "rescue-"
"""The prefix of the names under which rescues send beats. In a store with users, only a study's owners may do so."""
ONLY_OWNERS: Final = "only an owner may ask a study's peers for their states: hopaas-p2p admin grant STUDY USER owner"


def request_name(uuid: str) -> str:
    """The name under which a rescue of this study sends beats, to ask live peers for their states."""
    return f"{REQUEST}{uuid}"[:64]


def handover_prefix(uuid: str) -> str:
    """The prefix of the keys under which peers store their states for a rescue."""
    return f"{uuid}/rescue/"


def first_id(study_id: int) -> int:
    """Optuna's id of trial 0 of a study. For another trial, add its number."""
    return study_id << _NUMBER_BITS


def study_and_number(trial_id: int) -> tuple[int, int]:
    """The id of the study that a trial belongs to, and the trial's number in it."""
    return divmod(trial_id, 1 << _NUMBER_BITS)
