"""Which trials somebody wrote something about."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from dashboard_app.views.campaigns import first_line
from dashboard_app.views.table import tags_by_trial
from hopaas_p2p import notes

_NOTE: Final = re.compile(r"dashboard:(\d+):note_str:0")


class Noted(NamedTuple):
    """A trial with a note or a tag."""

    number: int
    tags: list[str]
    line: str
    """The first line of its note."""


def noted(system: Mapping[str, Any], study_id: int, trials: int) -> list[Noted]:
    """The trials of this study with a note or a tag, by number. `system` are the study's attributes, decoded."""
    tags = {number: words for number, words in tags_by_trial(dict(system)).items() if words and number < trials}
    lines: dict[int, str] = {}
    for key in system:
        match = _NOTE.fullmatch(key)
        if match is None:
            continue
        trial_id = int(match[1])
        number = trial_id - (study_id << 32)
        line = first_line(notes.read_note(system, trial_id))
        if 0 <= number < trials and line:
            lines[number] = line
    return [Noted(one, tags.get(one, []), lines.get(one, "")) for one in sorted({*tags, *lines})]
