"""The interface of hopaas_client, the client of the Hopaas service, on a shared log instead of a server.

    import hopaas_p2p.hopaas as hpc

is the one line to change in a script. docs/moving.md lists the differences from the original.
"""

from __future__ import annotations

import sys

from hopaas_p2p.hopaas import client, exceptions, pruners, samplers, study, suggestions, trial
from hopaas_p2p.hopaas.client import Client
from hopaas_p2p.hopaas.study import Study
from hopaas_p2p.hopaas.trial import FrozenTrial, Trial

__all__ = ["Client", "FrozenTrial", "Study", "Trial", "exceptions", "pruners", "samplers", "suggestions"]

for _name, _module in {
    "Client": client,
    "Exceptions": exceptions,
    "FrozenTrial": trial,
    "Study": study,
    "Trial": trial,
}.items():  # for `from hopaas_client.Client import Client`
    sys.modules[f"{__name__}.{_name}"] = _module
