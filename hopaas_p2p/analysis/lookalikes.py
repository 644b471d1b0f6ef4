"""Distinguishes names that look alike. Invisible characters are handled by `errors.visible`.

Anyone who may write to a store can give studies, sites, users and parameters any name.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Final

from hopaas_p2p.core.catalog import mixes_alphabets
from hopaas_p2p.errors import escaped, is_seen

_ALIKE: Final = str.maketrans(
    "АВЕЅІЈКМНОРСТУХԌԚԜаеіјорсухѕԁһӏԛԝкΑΒΕΖΗΙΚΜΝΟΡΤΥΧαγικνορυχօսհոցզյᎠᎡᎢᎪᎫᎬᎳᎷᎻᏀᏃᏙᏚᏞᏟᏢᏦıɑɡǀ‐‑‒–—−ʼ’‘",  # noqa: RUF001
    "ABESIJKMHOPCTYXGQWaeijopcyxsdhlqwkABEZHIKMNOPTYXayikvopuxouhngqjDRTAJEWMHGZVSLCPKiagl------'''",
)
MARK: Final = " (!)"


def told_apart(names: Sequence[str]) -> list[str]:
    r"""The names of a table, changed so that different names look different.

    Names that look like another name of the table are marked. Their non-ASCII characters become escapes such as
    `\u0430`, and so do those of names that mix look-alike letters of several alphabets. Other names are not changed.
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
        name = unicodedata.normalize("NFKC", "".join(one for one in name if one.isspace() or is_seen(one)))
    return " ".join(name.translate(_ALIKE).split())


def _in_ascii(name: str) -> str:
    spaced = name.replace("  ", "\\u0020\\u0020") if name == name.strip() else name.replace(" ", "\\u0020")
    return "".join(one if " " <= one <= "~" else escaped(one) for one in spaced)
