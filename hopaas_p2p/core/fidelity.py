"""What a study says of pauses: rungs or a population, and where its configurations then stand."""

from __future__ import annotations

from typing import Final

import msgspec

from hopaas_p2p.core.populations import Members, Population
from hopaas_p2p.core.rungs import Ladder, Rungs

Fidelity = Rungs | Population
Standings = Ladder | Members
"""Both are asked alike: `admit` and `place` take in where a configuration stands, `best` says which goes on next."""


_decode: Final = msgspec.json.Decoder(Rungs | Population | None).decode


def standings_of(policy: Fidelity, *, maximize: bool) -> Standings:
    """The standings of a study with this policy, which nobody has entered yet."""
    if isinstance(policy, Population):
        return Members(policy, maximize=maximize)
    return Ladder(policy, maximize=maximize)


def decode_fidelity(text: str) -> Fidelity | None:
    """What a study's attribute says. None: nothing, or nothing that can be read."""
    try:
        policy: Fidelity | None = _decode(text)
    except msgspec.MsgspecError:
        return None
    return policy


def encode_fidelity(policy: Fidelity | None) -> str:
    """The attribute of a study with this policy."""
    return msgspec.json.encode(policy).decode()


def possible_fidelity(said: object) -> bool:
    """Whether a study's attribute may be this: null, or a policy that can be."""
    try:
        policy = msgspec.convert(said, Fidelity | None)
    except msgspec.ValidationError:
        return False
    return policy is None or policy.impossible() is None
