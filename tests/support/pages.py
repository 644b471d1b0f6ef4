"""Pages of the documentation, run as a reader would: one directory, one block after another, the installed program.

A block that says `title="NAME"` is a file that the reader writes. A page may speak of servers of somebody else's
(`db.example.org`); a test says what stands in for them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r'(?:title="([^"]+)"|file=(\S+))')
_SHOWN = {"text", "console", "mermaid"}
"""Blocks that show something and are not meant to be run as they stand."""


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    file: str | None
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    found = []
    for match in _FENCE.finditer(page.read_text(encoding="utf-8")):
        language, _, rest = match["info"].partition(" ")
        named = _FILE.search(rest)
        found.append(Block(language, (named[1] or named[2]) if named else None, match["text"]))
    return found


def run_page(
    page: str,
    directory: Path,
    *,
    stands_in: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    seconds: float = 120,
    sql: Callable[[str], None] | None = None,
) -> str:
    """Run every block of a page in a directory; returns all that the blocks printed. `sql` runs blocks of that."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HOPAAS_")}
    environment |= {"PATH": path, "PYTHONWARNINGS": "", "HOME": str(directory), **(env or {})}
    said = []
    for block in blocks(ROOT / page):
        if block.language in _SHOWN:
            continue
        text = block.text
        for shown, real in (stands_in or {}).items():
            text = text.replace(shown, real)
        if block.file is not None:
            (directory / block.file).parent.mkdir(parents=True, exist_ok=True)
            (directory / block.file).write_text(text)
            continue
        if block.language == "sql" and sql is not None:
            sql(text)
            continue
        command = {"python": [sys.executable, "-c", text], "sh": ["bash", "-euo", "pipefail", "-c", text]}
        ran = subprocess.run(
            command[block.language], cwd=directory, env=environment, capture_output=True, text=True, timeout=seconds
        )
        assert ran.returncode == 0, f"{text}\n{ran.stdout}\n{ran.stderr}"
        assert "Traceback" not in ran.stderr, ran.stderr
        said.append(ran.stdout + ran.stderr)
    return "".join(said)
