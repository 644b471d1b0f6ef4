"""Prints JSON for programs and short tables for people. Control characters in untrusted text are made visible."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import shlex
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from hopaas_p2p.analysis import facts
from hopaas_p2p.analysis.lookalikes import MARK, told_apart
from hopaas_p2p.errors import visible
from hopaas_p2p.runtime.redaction import without_passwords
from hopaas_p2p.runtime.times import to_iso

if TYPE_CHECKING:
    from hopaas_p2p.net.findings import Finding

_BY_COLOUR: Final = {
    "green": ("COMPLETE", "done", "alive", "passed"),
    "cyan": ("RUNNING", "running"),
    "yellow": ("PRUNED", "PAUSED", "paused", "stopped"),
    "red": ("FAIL", "failing", "silent", "failed"),
    "blue": ("WAITING",),
}
_COLOURS: Final = {word: colour for colour, words in _BY_COLOUR.items() for word in words}


def printable(text: str, *, lines: bool = False) -> str:
    """The text with control characters made visible; on one line unless `lines`."""
    return visible(text, keep="\n\t") if lines else visible(" ".join(text.split()))


def shell_word(text: str) -> str:
    """The text as one word for bash, zsh or ksh, in printable ASCII, so that a terminal shows exactly what the shell
    gets.
    """
    if text.isascii() and text.isprintable():
        return shlex.quote(text)
    coded = text.encode("utf-8", "surrogatepass")
    safe = (chr(one) if 32 <= one < 127 and one not in b"'\\" else f"\\{one:03o}" for one in coded)
    return f"$'{''.join(safe)}'"


quiet = False
"""Whether the running command has --quiet. All threads of the command read this."""
warned = ""
"""The last warning of the library that Python printed because logging has no handler, so that no error repeats it."""


def _remember(record: logging.LogRecord) -> bool:
    global warned
    warned = record.getMessage()
    return True


logging.lastResort.addFilter(_remember)  # type: ignore[union-attr]  # it is None only if a program removes it


def say(message: str, *, always: bool = False) -> None:
    """Print a message for people on stderr; with --quiet only if `always`."""
    if always or not quiet:
        with contextlib.suppress(OSError):  # the terminal is closed
            click.echo(printable(without_passwords(message), lines=True), err=True)


count: Final = facts.count


def jsonable(value: Any) -> Any:
    """The value in strict JSON: NaN and infinities become the strings 'NaN', 'Infinity', '-Infinity'."""
    if isinstance(value, dict):
        return {str(key): jsonable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(one) for one in value]
    if isinstance(value, datetime.datetime):
        return to_iso(value)
    return facts.json_number(value) if isinstance(value, str | int | float | bool | None) else str(value)


def print_json(data: Any) -> None:
    """Print a JSON document, indented if stdout is a terminal."""
    click.echo(json.dumps(jsonable(data), indent=2 if sys.stdout.isatty() else None))


def print_lines(values: Iterable[object]) -> None:
    """Print values, one per line."""
    for value in values:
        click.echo(printable(str(value)))


def number(value: float | None) -> str:
    """A number with six significant digits."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def numbers(values: Sequence[float] | None) -> str:
    """Numbers in one cell."""
    return ", ".join(number(value) for value in values) if values else "-"


def parameters(params: Mapping[str, Any], *, digits: int = 6) -> str:
    """Parameters in one cell, numbers with `digits` significant digits."""
    plain = {name: f"{one:.{digits}g}" if isinstance(one, float) else one for name, one in params.items()}
    return " ".join(
        f"{printable(name)}={printable(one if isinstance(one, str) else json.dumps(one))}"
        for name, one in plain.items()
    )


def utc_time(iso: str | None) -> str:
    """A time from `times.to_iso`, in readable form without fractions of a second."""
    return f"{iso[:10]} {iso[11:19]} UTC" if iso else ""


def time_in(column: str) -> Callable[[Mapping[str, Any]], str]:
    """A function that shows the time in this column of a row, a moment or its text."""
    return lambda row: utc_time(jsonable(row[column])) or "never"


def size(count: int | None) -> str:
    """A number of bytes, with up to three digits and a unit."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def size_in(column: str) -> Callable[[Mapping[str, Any]], str]:
    """A function that shows the size in this column of a row."""
    return lambda row: size(row[column])


def where(row: Mapping[str, Any]) -> str:
    """The node and the site of a peer, which are often the same; "-" if no peer is known."""
    site, host = row["site"], row["host"]
    if not site and not host:
        return "-"
    return host or "?" if site == host else f"{host or '?'} ({site or '?'})"


def duration(seconds: float | None) -> str:
    """Seconds in words; see `analysis.facts.duration`."""
    return "-" if seconds is None else facts.duration(seconds)


def ago(seconds: float | None) -> str:
    """How long ago something happened."""
    return "unknown" if seconds is None else facts.ago(seconds)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print a table. On a terminal, wide columns are cut to fit, except the first, and states are in colour."""
    lines = aligned([headers, *rows], right=right, for_terminal=sys.stdout.isatty())
    for line in lines:
        click.echo(line)
    if any(MARK in line for line in lines):
        say(f"A name marked{MARK} looks like another name in its column, but differs from it")


def aligned(rows: Sequence[Sequence[str]], *, right: Sequence[str], for_terminal: bool = False) -> list[str]:
    """The lines of a table whose first row has the heads, with two spaces between columns."""
    columns = [[head, *told_apart(column)] for head, *column in zip(*rows, strict=True)]
    cells = [[printable(cell) for cell in row] for row in zip(*columns, strict=True)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    if for_terminal:
        room = shutil.get_terminal_size().columns - 2 * (len(widths) - 1)
        while sum(widths) > room and (widest := max(widths[1:], default=0)) > 8:  # the first column names the row
            widths[widths.index(widest, 1)] -= 1
    lines = []
    for row in cells:
        parts = []
        for head, cell, width in zip(rows[0], row, widths, strict=True):
            text, kept = cell, len(cell)
            while _width(text) > width:  # heads and paths often differ at their ends
                kept -= 1
                text = f"{cell[: kept - kept // 3]}…{cell[len(cell) - kept // 3 :]}"
            space = " " * (width - _width(text))
            text = _coloured(text) if for_terminal and row is not cells[0] else text
            parts.append(space + text if head in right else text + space)
        lines.append("  ".join(parts).rstrip())
    return lines


def print_facts(found: dict[str, str | list[str]]) -> None:
    """Print a line per name (capitalised) and value, or per item of a list. Empty values are omitted, and on a terminal
    long ones are wrapped.
    """
    facts = {name: one.split("\n") if isinstance(one, str) else one for name, one in found.items() if one}
    width = max(map(len, facts))
    room = max(20, shutil.get_terminal_size().columns - width - 2) if sys.stdout.isatty() else 0
    for name, values in facts.items():
        lines = [visible(one, keep="\t") for one in values]
        first, *others = [part for line in lines for part in (textwrap.wrap(line, room) if room else [line]) or [""]]
        click.echo(f"{name[:1].upper()}{name[1:]:<{width - 1}}  {_coloured(first)}")
        for line in others:
            click.echo(f"{'':<{width}}  {line}")


def finding_text(finding: Finding, *, colour: bool = False) -> str:
    """The text of a check's result, with the cure below it if the check failed."""
    word = "passed" if finding.passed else "failed"
    cure = f"\n        -> {printable(finding.cure)}" if finding.cure and not finding.passed else ""
    return f"{_coloured(word) if colour else word}  {printable(finding.check)}: {printable(finding.detail)}{cure}"


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _coloured(text: str) -> str:
    """A state's name in the state's colour, if stdout may be coloured; see no-color.org."""
    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    colour = None if plain else _COLOURS.get(text)
    return click.style(text, fg=colour) if colour else text
