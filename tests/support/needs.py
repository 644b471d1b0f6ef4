"""What tests need of the machine: without it they are skipped and say so, or fail where everything must be there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def missing(what: str) -> NoReturn:
    """Skip, or fail where everything must be there."""
    if os.environ.get("HOPAAS_TEST_REQUIRE") == "all":
        pytest.fail(f"{what}, and HOPAAS_TEST_REQUIRE=all")
    pytest.skip(what)


def need_root(what: str) -> None:
    """Skip where the tests do not run as root."""
    if os.geteuid() != 0:
        missing(f"{what} needs root")


def need_programs(what: str, packages: str, *programs: str) -> None:
    """Skip where one of these programs is not installed."""
    for program in programs:
        if shutil.which(program, path=PATH) is None:
            missing(f"{what}: there is no {program} (apt-get install --no-install-recommends {packages})")


def need_fuse(what: str) -> None:
    """Skip where FUSE file systems cannot be mounted."""
    if not Path("/dev/fuse").exists():
        missing(f"{what} needs /dev/fuse")
