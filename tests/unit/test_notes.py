"""Notes and tags that several people write at once, and tags of earlier versions."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

import hopaas_p2p
from hopaas_p2p import notes
from hopaas_p2p.core.records import StudySet
from hopaas_p2p.study import Study


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4()}"


@pytest.fixture
def study(url: str) -> Study:
    return hopaas_p2p.open_study(url, "s")


@pytest.fixture
def meanwhile(study: Study, url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Study], Any]], None]:
    """Lets somebody else do this between the next change's look at the study and its record."""
    say = study.handle.say

    def let(change: Callable[[Study], Any]) -> None:
        def late(*args: Any) -> Any:
            monkeypatch.setattr(study.handle, "say", say)
            change(hopaas_p2p.open_study(url, "s"))
            return say(*args)

        monkeypatch.setattr(study.handle, "say", late)

    return let


@pytest.mark.parametrize("number", [None, 0], ids=["of the study", "of a trial"])
def test_tags_that_two_people_add_at_once_are_both_kept(study: Study, meanwhile: Any, number: int | None) -> None:
    study.enqueue_trial({})
    meanwhile(lambda other: notes.change_tags(other, number, add=["theirs"]))

    assert notes.change_tags(study, number, add=["mine"]) == ["theirs", "mine"]
    assert notes.tags_of(study, number) == ["theirs", "mine"]


def test_a_tag_that_is_removed_while_another_is_added_is_gone(study: Study, meanwhile: Any) -> None:
    notes.change_tags(study, add=["old"])
    meanwhile(lambda other: notes.change_tags(other, remove=["old"]))

    assert notes.change_tags(study, add=["new"]) == ["new"]


@pytest.mark.parametrize("mine", ["short", "m" * 2045], ids=["short", "one whole piece"])
def test_of_two_notes_that_are_saved_at_once_the_later_one_is_there_alone(
    study: Study, meanwhile: Any, mine: str
) -> None:
    meanwhile(lambda other: notes.save_note(other, "t" * 5000))

    notes.save_note(study, mine)

    assert notes.note_of(study) == mine


@pytest.mark.parametrize("version", ["9" * 4300, str((1 << 53) - 1), "-1", "true", '"x"'])
def test_whatever_version_a_note_says_that_it_has_the_next_one_is_saved(study: Study, version: str) -> None:
    study.handle.say(StudySet(system={"dashboard:note_ver": version}))
    notes.save_note(study, "mine")
    assert notes.note_of(study) == "mine"
