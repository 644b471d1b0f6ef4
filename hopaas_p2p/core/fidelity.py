"""What a study says of pauses: rungs, a population, or nothing."""

from __future__ import annotations

from typing import Final

import msgspec

from hopaas_p2p.core.populations import Population
from hopaas_p2p.core.rungs import Rungs

Fidelity = Rungs | Population
_decode: Final = msgspec.json.Decoder(Rungs | Population | None).decode


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
