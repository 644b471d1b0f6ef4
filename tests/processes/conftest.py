"""What tests of commands use unless their file has another `study`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hopaas_p2p.study import Study
from tests.support.processes import campaign


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    with contextlib.closing(campaign(tmp_path)) as study:
        yield study


@pytest.fixture
def here(tmp_path: Path, study: Study) -> dict[str, Any]:
    """Where a command finds that study: its directory, and its environment."""
    return {"cwd": tmp_path, "HOPAAS_STORE": "./store", "HOPAAS_STUDY": "s"}
