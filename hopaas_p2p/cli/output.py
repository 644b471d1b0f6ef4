"""How results look: JSON for programs, short tables for people. Text that other peers wrote is made harmless first."""

from __future__ import annotations

import datetime
import json
import math
import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, Final

import click

_UNSAFE: Final = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
_COLOURS: Final = {
    "COMPLETE": "green",
    "RUNNING": "cyan",
    "PRUNED": "yellow",
    "FAIL": "red",
    "WAITING": "blue",
    "running": "cyan",
    "done": "green",
    "paused": "yellow",
    "stopped": "yellow",
    "failing": "red",
    "passed": "green",
    "failed": "red",
}


def printable(text: str, *, lines: bool = False) -> str:
    """The text without what could move a terminal's cursor; on one line unless `lines`."""
    if not lines:
        text = " ".join(text.split())
    return "".join(
        "\ufffd" if unicodedata.category(character) in _UNSAFE and not (lines and character in "\n\t") else character
        for character in text
    )


def say(message: str) -> None:
    """A message for people, on stderr."""
    click.echo(printable(message, lines=True), err=True)


def count(number: int, what: str) -> str:
    """So many of them: `1 trial`, `2 trials`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def jsonable(value: Any) -> Any:
    """The value as strict JSON can carry it: NaN and infinities become the strings 'NaN', 'Infinity', '-Infinity'."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(key): jsonable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(one) for one in value]
    if isinstance(value, str | int | float | bool | None):
        return value
    return str(value)


def print_json(data: Any) -> None:
    """One JSON document on stdout; indented for a terminal, on one line for a program."""
    click.echo(json.dumps(jsonable(data), indent=2 if sys.stdout.isatty() else None))


def print_lines(values: Iterable[object]) -> None:
    """Values on stdout, one a line."""
    for value in values:
        click.echo(printable(str(value)))


def number(value: float | None) -> str:
    """A number as short as people need it."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def numbers(values: Sequence[float] | None) -> str:
    """Some numbers, for one cell."""
    return ", ".join(number(value) for value in values) if values else "-"


def parameters(params: dict[str, Any]) -> str:
    """Parameters, for one cell."""
    return " ".join(
        f"{printable(name)}={number(value) if isinstance(value, float) else printable(str(value))}"
        for name, value in params.items()
    )


def local_time(microseconds: int | None) -> str:
    """A time of the log, in this machine's time zone."""
    when = _datetime(microseconds)
    return when.astimezone().strftime("%Y-%m-%d %H:%M:%S") if when else "-"


def iso_time(microseconds: int | None) -> str | None:
    """A time of the log, in UTC, for programs."""
    when = _datetime(microseconds)
    return when.isoformat().replace("+00:00", "Z") if when else None


def _datetime(microseconds: int | None) -> datetime.datetime | None:
    if microseconds is None:
        return None
    try:
        return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=microseconds)
    except OverflowError:  # nonsense from a broken peer
        return None


def duration(seconds: float | None) -> str:
    """Seconds, as people say them."""
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table on stdout, as wide as the terminal at most: the widest columns give way."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(headers, *cells, strict=True)]
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - 2 * (len(widths) - 1)
        while sum(widths) > room and max(widths) > 8:
            widths[widths.index(max(widths))] -= 1
    for at, row in enumerate((headers, *cells)):
        parts = []
        for header, cell, width in zip(headers, row, widths, strict=True):
            text = _cut(cell, width)
            space = " " * (width - _width(text))
            coloured = _coloured(text) if at else text
            parts.append(space + coloured if header in right else coloured + space)
        click.echo("  ".join(parts).rstrip())


def print_facts(facts: dict[str, str]) -> None:
    """Names and values, one a line; on a terminal, long lines go on below their beginning."""
    width = max(map(len, facts))
    room = max(20, shutil.get_terminal_size().columns - width - 2) if sys.stdout.isatty() else 0
    for name, value in facts.items():
        lines = printable(value, lines=True).split("\n")
        first, *others = [part for line in lines for part in (textwrap.wrap(line, room) if room else [line]) or [""]]
        click.echo(f"{name:<{width}}  {_coloured(first)}")
        for line in others:
            click.echo(f"{'':<{width}}  {line}")


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while text and _width(text) > width - 1:
        text = text[:-1]
    return text + "…"


def _coloured(text: str) -> str:
    colour = _COLOURS.get(text)
    return click.style(text, fg=colour) if colour and in_colour() else text


def in_colour() -> bool:
    """Whether stdout may be coloured; see no-color.org."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
