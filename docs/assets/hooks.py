# ruff: noqa: INP001  # MkDocs loads it by its path
"""What the site does with pages that are also read on their own: MkDocs calls these functions.

Everything that is a page is in the navigation or in nobody's way: a page that the navigation names and that is not
there is left out, a page that is there and not named comes last, under "More".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """The navigation, made true."""
    docs = Path(config["docs_dir"])
    named: set[str] = set()
    config["nav"] = _existing(config["nav"], docs, named)
    decisions = sorted(path.relative_to(docs).as_posix() for path in (docs / "adr").glob("*.md"))
    concepts = next(section["Concepts"] for section in config["nav"] if "Concepts" in section)
    concepts.append({"Decisions in full": decisions})
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
