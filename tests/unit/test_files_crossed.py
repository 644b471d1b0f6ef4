"""How many of our files and functions a trial passes through: a person who follows an ask to the disk reads as many."""

from __future__ import annotations

import pytest

from tests.support.crossing import ask_and_tell, files_of


@pytest.mark.parametrize(("space", "asking", "telling"), [(False, (11, 60), (11, 60)), (True, (14, 76), (11, 60))])
def test_an_ask_and_a_tell_on_a_directory_cross_few_files_and_functions(
    *, space: bool, asking: tuple[int, int], telling: tuple[int, int]
) -> None:
    for crossed, (most_files, most_functions) in zip(ask_and_tell(space=space), (asking, telling), strict=True):
        files = files_of(crossed)
        assert len(files) <= most_files, files
        assert len(crossed) <= most_functions, sorted(one.co_qualname for one in crossed)
