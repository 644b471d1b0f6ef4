# ruff: noqa: INP001  # MkDocs loads it by its path
"""What the site does with pages that are also read on their own: MkDocs calls these functions.

Every page has its place: one that the navigation names and that is not there is left out, one that is there and not
named comes last, under "More". A state diagram is drawn here, as SVG: the library that a browser would draw it with
comes from somebody else's server.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

_DIAGRAM = re.compile(r"```mermaid\nstateDiagram-v2\n(.*?)```", re.DOTALL)
_ARROW = re.compile(r"^\s*(\S+) --> (\S+): (.*)$", re.MULTILINE)
_PLACES = {
    "[*]": (40, 150),
    "WAITING": (230, 60),
    "RUNNING": (230, 240),
    "COMPLETE": (620, 40),
    "PRUNED": (620, 150),
    "FAIL": (620, 260),
}
_WIDE = ("optuna.md",)
_GLOSSARY = "concepts.md"
_HALF_WIDTH, _HALF_HEIGHT = 58, 18


def on_config(config: Any) -> Any:
    """The navigation, made true."""
    docs = Path(config["docs_dir"])
    named: set[str] = set()
    config["nav"] = _existing(config["nav"], docs, named)
    decisions = sorted(path.relative_to(docs).as_posix() for path in (docs / "adr").glob("*.md"))
    internals = next(section["Internals"] for section in config["nav"] if "Internals" in section)
    internals.append({"Decisions": decisions})
    named.update(decisions)
    others = sorted({path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} - named)
    if others:
        config["nav"].append({"More": others})
    return config


def _existing(nav: list[Any], docs: Path, named: set[str]) -> list[Any]:
    kept: list[Any] = []
    for entry in nav:
        ((title, target),) = entry.items()
        if isinstance(target, list):
            kept.append({title: _existing(target, docs, named)})
        elif (docs / target).is_file():
            named.add(target)
            kept.append(entry)
    return [entry for entry in kept if next(iter(entry.values()))]


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """State diagrams, drawn; room for tables that need it; and below each page a link to the glossary."""
    uri = page.file.src_uri
    if uri in _WIDE:
        page.meta["hide"] = ["navigation", "toc"]
    if uri != _GLOSSARY:
        markdown += (
            f"\n\n<small>Terms are explained in the [glossary]({'../' * uri.count('/')}{_GLOSSARY}#terms).</small>\n"
        )
    return _DIAGRAM.sub(lambda found: _drawn(_ARROW.findall(found[1])), markdown)


def _drawn(arrows: list[tuple[str, str, str]]) -> str:
    parts = [
        '<svg class="states" viewBox="0 0 700 300" role="img" aria-label="states of a trial, and what leads to them">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">',
        '<path d="M0 0 8 4 0 8z"/></marker></defs>',
    ]
    parts += [_arrow(start, end, label) for start, end, label in arrows]
    for name, (x, y) in _PLACES.items():
        if name == "[*]":
            parts.append(f'<circle cx="{x}" cy="{y}" r="8"/>')
            continue
        left, top = x - _HALF_WIDTH, y - _HALF_HEIGHT
        size = f'width="{2 * _HALF_WIDTH}" height="{2 * _HALF_HEIGHT}"'
        parts.append(f'<rect x="{left}" y="{top}" {size} rx="8"/><text x="{x}" y="{y + 5}">{name}</text>')
    return "".join([*parts, "</svg>"])


def _arrow(start: str, end: str, label: str) -> str:
    (x1, y1), (x2, y2) = _PLACES[start], _PLACES[end]
    if x1 == x2:  # up or down: there and back again side by side
        aside = 24 if y2 > y1 else -24
        x1 = x2 = x1 + aside
        y1, y2 = (y1 + _HALF_HEIGHT, y2 - _HALF_HEIGHT) if y2 > y1 else (y1 - _HALF_HEIGHT, y2 + _HALF_HEIGHT)
        text_x, anchor = x1 + (6 if aside > 0 else -6), "start" if aside > 0 else "end"
        text = f'<text x="{text_x}" y="{(y1 + y2) / 2}" class="{anchor}">{escape(label)}</text>'
        return f'<path d="M{x1} {y1} {x2} {y2}"/>{text}'
    x1, x2 = x1 + (8 if start == "[*]" else _HALF_WIDTH), x2 - _HALF_WIDTH
    share = 0.45 if start == "[*]" else 0.3 if start == "WAITING" else 0.62
    x, y = x1 + share * (x2 - x1), y1 + share * (y2 - y1) - 5
    return f'<path d="M{x1} {y1} {x2} {y2}"/><text x="{x:.0f}" y="{y:.0f}">{escape(label)}</text>'
