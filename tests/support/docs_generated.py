"""The parts of docs/ that are generated from the code. `make docs` writes them; tests/docs/test_docs.py checks them.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from hopaas_p2p.core import codec, records
from hopaas_p2p.core.records import Policy
from hopaas_p2p.core.state import REFUSALS, TRANSITIONS, LateFinish
from tests.support.crossing import ask_and_tell, files_of

DOCS: Final = Path(__file__).parents[2] / "docs"
_PART: Final = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _tag(kind: type) -> str:
    return str(kind.__struct_config__.tag)  # type: ignore[attr-defined]


def _diagram() -> str:
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> WAITING: trial.create", "    [*] --> RUNNING: trial.create"]
    arrows: dict[tuple[str, str], list[str]] = {}
    for (start, kind), move in TRANSITIONS.items():
        for end in move.to:
            if end is not start:
                word = "late result" if kind is LateFinish else _tag(kind).removeprefix("trial.")
                arrows.setdefault((start.name, end.name), []).append(word)
    lines += [f"    {start} --> {end}: {', '.join(words)}" for (start, end), words in arrows.items()]
    return "\n".join([*lines, "```"])


def _words(annotation: object) -> str:
    """A type as people read it."""
    text = str(annotation) if typing.get_origin(annotation) else getattr(annotation, "__name__", str(annotation))
    text = re.sub(r"[\w.]*\.(\w+)", r"\1", text)
    text = re.sub(r"Optional\[(.*)\]$", r"\1 | None", text)
    return text.replace("NoneType", "None")


def _records() -> str:
    parts = []
    for kind in (*typing.get_args(records.StudyRecord), *typing.get_args(records.CatalogRecord)):
        parts.append(f"### `{_tag(kind)}`\n\n{inspect.getdoc(kind)}\n\n{_fields(kind)}\n")
    return "\n".join(parts).rstrip()


def _policy() -> str:
    return _fields(Policy)


def _fields(kind: type[msgspec.Struct]) -> str:
    """The fields of a struct in their order, as a block; a type with ? may be nil, and is by default."""
    hints = typing.get_type_hints(kind)
    rows = [f"    {f.name}: {_words(hints[f.name])}{_default(f)}" for f in msgspec.structs.fields(kind)]
    return "\n".join(row.replace(" | None = None", "?") for row in rows)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    elif field.default is not msgspec.NODEFAULT:
        default = field.default
    else:
        return ""
    if isinstance(default, Policy):  # the page has its fields
        return " = Policy()"
    return f" = {default!r}" if isinstance(default, str) else f" = {getattr(default, 'name', default)}"


def _refusals() -> str:
    return "\n".join(f"* {word}: {why}" for word, why in REFUSALS.items())


def _limits() -> str:
    return (
        f"The format's number is {records.FORMAT}. A commit has at most {codec.MAX_BYTES:,} bytes"
        f" and {codec.MAX_RECORDS:,} records."
    )


def _path() -> str:
    """What an ask in a study with a search space and a tell cross, a line per package."""
    ask, tell = (files_of(crossed) for crossed in ask_and_tell(space=True))
    rows = ["| package | ask | tell |", "|---|---|---|"]
    for package in dict.fromkeys(file.rpartition("/")[0] for file in (*ask, *tell)):
        cells = [", ".join(_names(package, files)) for files in (ask, tell)]
        rows.append(f"| `{package or '.'}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def _names(package: str, files: list[str]) -> list[str]:
    return [Path(file).stem for file in files if file.rpartition("/")[0] == package]


PARTS: Final[dict[str, Callable[[], str]]] = {
    "diagram": _diagram,
    "records": _records,
    "policy": _policy,
    "refusals": _refusals,
    "limits": _limits,
    "path": _path,
}


def rewritten(text: str) -> str:
    """The page with its generated parts as the code says."""
    return _PART.sub(lambda match: f"{match[1]}{PARTS[match[2]]()}\n{match[3]}", text)


def pages() -> list[Path]:
    """The pages that have generated parts."""
    return [page for page in sorted(DOCS.glob("*.md")) if "<!-- generated: " in page.read_text(encoding="utf-8")]


if __name__ == "__main__":
    from tests.support.cli_reference import reference

    for path in pages():
        path.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")
    (DOCS / "cli.md").write_text(reference(), encoding="utf-8")
