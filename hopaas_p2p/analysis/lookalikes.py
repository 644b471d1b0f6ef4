"""Makes text from other people safe to read: writes out invisible characters, and distinguishes names that look alike.

Anyone who may write to a store can give studies, sites, users and parameters any name.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Final

from hopaas_p2p.core.catalog import mixes_alphabets

_UNSAFE: Final = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_SELECTORS: Final = (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
_INVISIBLE: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0").union(map(chr, _SELECTORS))
"""Letters and marks that have no shape."""
_ALIKE: Final = str.maketrans(
    "АВЕЅІЈКМНОРСТУХԌԚԜаеіјорсухѕԁһӏԛԝкΑΒΕΖΗΙΚΜΝΟΡΤΥΧαγικνορυχօսհոցզյᎠᎡᎢᎪᎫᎬᎳᎷᎻᏀᏃᏙᏚᏞᏟᏢᏦıɑɡǀ‐‑‒–—−ʼ’‘",  # noqa: RUF001
    "ABESIJKMHOPCTYXGQWaeijopcyxsdhlqwkABEZHIKMNOPTYXayikvopuxouhngqjDRTAJEWMHGZVSLCPKiagl------'''",
)
MARK: Final = " (!)"


def visible(text: str, *, keep: str = "") -> str:
    r"""The text with escapes such as `\u200b` for control and invisible characters, except those in `keep`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if one in keep or _is_seen(one) else _written(one) for one in text)


def _is_seen(character: str) -> bool:
    return unicodedata.category(character) not in _UNSAFE and character not in _INVISIBLE


def told_apart(names: Sequence[str]) -> list[str]:
    r"""The names of a table, changed so that different names look different.

    Names that look like another one here are marked, and their non-ASCII characters become escapes such as `\u0430`; so
    do those of names that mix look-alike letters of several alphabets. Other names stay as they are.
    """
    alike = Counter(map(_skeleton, set(names)))
    marked = {name for name in names if alike[_skeleton(name)] > 1}
    return [
        _in_ascii(name) + MARK if name in marked else _in_ascii(name) if mixes_alphabets(name) else name
        for name in names
    ]


def _skeleton(name: str) -> str:
    """A form that is equal for names that look the same."""
    if not name.isascii():
        name = unicodedata.normalize("NFKC", "".join(one for one in name if one.isspace() or _is_seen(one)))
    return " ".join(name.translate(_ALIKE).split())


def _in_ascii(name: str) -> str:
    spaced = name.replace("  ", "\\u0020\\u0020") if name == name.strip() else name.replace(" ", "\\u0020")
    return "".join(one if " " <= one <= "~" else _written(one) for one in spaced)


def _written(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) < 1 << 16 else f"\\U{ord(character):08x}"
