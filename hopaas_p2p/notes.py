"""Notes and tags of studies and trials.

Notes use optuna-dashboard's format, so each program shows the other's notes. A note is Markdown in pieces of
2045 characters under `dashboard:note_str:<i>` (a trial's: `dashboard:<trial id>:note_str:<i>`), with a version number
that increases. An empty piece ends the note, so that nothing remains of a longer one that somebody else saves at the
same time.
Tags have our own format: true or false under `hopaas:tag:<tag>`, a trial's under `hopaas:<number>:tag:<tag>`, so that
several people may change them at once. All notes and tags are attributes of the study, so a finished trial can be
annotated too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from hopaas_p2p.core.records import LAST_TIME, StudySet
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.study_like import StudyLike
from hopaas_p2p.translate import to_json

_PIECE: Final = 2045  # characters; optuna-dashboard's SYSTEM_ATTR_MAX_LENGTH
_MAX_NOTE: Final = 1 << 18  # characters
_MAX_TAG: Final = 64  # characters
_TAG: Final = re.compile(r"hopaas:(?:([0-9]{1,20}):)?tag:(.*)", re.DOTALL)


def note_of(study: StudyLike, number: int | None = None) -> str:
    """The note of the study, or of the trial of that number; empty when there is none.

    Raises:
        NoSuchTrial: there is no trial of that number.

    """
    return read_note(_attributes(study), _trial_id(study, number))


def read_note(attributes: Mapping[str, Any], trial_id: int | None) -> str:
    """The note in a study's decoded system attributes, at most 262,144 characters of it."""
    prefix = _prefix(trial_id)
    pieces: list[str] = []
    while isinstance(piece := attributes.get(f"{prefix}note_str:{len(pieces)}"), str) and piece:
        pieces.append(piece)
    return "".join(pieces)[:_MAX_NOTE]


def save_note(study: StudyLike, text: str, number: int | None = None) -> None:
    """Replace the note (Markdown) in one commit; an empty `text` removes it.

    Raises:
        NoSuchTrial: there is no trial of that number.
        InvalidInput: the text is longer than 262,144 characters.

    """
    if len(text) > _MAX_NOTE:
        raise InvalidInput(f"a note has at most {_MAX_NOTE:,} characters, got {len(text):,}")
    attributes = _attributes(study)
    prefix = _prefix(_trial_id(study, number))
    version = attributes.get(f"{prefix}note_ver", 0)
    pieces: dict[str, Any] = {
        f"{prefix}note_str:{index}": text[index * _PIECE : (index + 1) * _PIECE]
        for index in range(math.ceil(len(text) / _PIECE) + 1)
    }
    old = [key for key in attributes if key.startswith(f"{prefix}note_str:") and key not in pieces]
    pieces.update(dict.fromkeys(old, ""))
    pieces[f"{prefix}note_ver"] = (version + 1) % LAST_TIME if isinstance(version, int) else 1
    _write(study, pieces)


def tags_of(study: StudyLike, number: int | None = None) -> list[str]:
    """The tags of the study, or of the trial of that number; raises like `note_of`."""
    _trial_id(study, number)
    return read_tags(_attributes(study), number)


def read_tags(attributes: Mapping[str, Any], number: int | None = None) -> list[str]:
    """The tags in a study's decoded system attributes. For many trials, `tags_by_trial` gets them in one pass."""
    return tags_by_trial(attributes).get(number, [])


def tags_by_trial(attributes: Mapping[str, Any]) -> dict[int | None, list[str]]:
    """The tags in a study's decoded system attributes by trial number; the key None has the study's."""
    found: dict[int | None, list[str]] = {}
    for key, value in attributes.items():
        match = _TAG.fullmatch(key)
        if match is not None and value is True:
            found.setdefault(None if match[1] is None else int(match[1]), []).append(match[2])
    return found


def change_tags(
    study: StudyLike, number: int | None = None, *, add: Collection[str] = (), remove: Collection[str] = ()
) -> list[str]:
    """Add and remove tags; return the resulting tags, including others' changes. Raises like `note_of`.

    Raises:
        InvalidInput: a tag is empty, longer than 64 characters, or not printable.

    """
    for tag in add:
        if not tag or len(tag) > _MAX_TAG or not tag.isprintable():
            raise InvalidInput(f"{tag!r} is not a tag: use 1 to {_MAX_TAG} printable characters")
    before = tags_of(study, number)
    prefix = "hopaas:tag:" if number is None else f"hopaas:{number}:tag:"
    changes = {f"{prefix}{tag}": True for tag in add if tag not in before and tag not in remove}
    changes |= {f"{prefix}{tag}": False for tag in remove if tag in before}
    if changes:
        _write(study, changes)
    return tags_of(study, number)


def _attributes(study: StudyLike) -> dict[str, Any]:
    return study.storage.get_study_system_attrs(study.study_id)


def _write(study: StudyLike, attributes: Mapping[str, Any]) -> None:
    study.handle.say(StudySet(system={key: to_json(key, value) for key, value in attributes.items()}))


def _trial_id(study: StudyLike, number: int | None) -> int | None:
    return None if number is None else study.handle.first_id + study.handle.existing(number).number


def _prefix(trial_id: int | None) -> str:
    return "dashboard:" if trial_id is None else f"dashboard:{trial_id}:"
