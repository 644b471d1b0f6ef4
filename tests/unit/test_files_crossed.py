"""How many of our files a trial passes through: a person who follows an ask to the disk reads as many."""

from __future__ import annotations

import pytest

from tests.support.crossing import ask_and_tell


@pytest.mark.parametrize(("space", "most_asking", "most_telling"), [(False, 18, 17), (True, 22, 17)])
def test_an_ask_and_a_tell_on_a_directory_cross_few_files(*, space: bool, most_asking: int, most_telling: int) -> None:
    ask, tell = ask_and_tell(space=space)
    assert len(ask) <= most_asking, ask
    assert len(tell) <= most_telling, tell
