"""Optional packages: whether they are installed, and the command that installs missing ones.

The command names the packages themselves, as this package's metadata lists them for an extra. So it is the same in a
checkout as after a release, and does not fetch another version of hopaas-p2p. Without metadata, it names the extra.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import re
from importlib import metadata
from typing import Final

from hopaas_p2p.errors import ConfigurationError

_EXTRA: Final = re.compile(r"""extra\s*==\s*["']([\w-]+)["']""")
_OF_OPTUNA: Final = {"GPSampler": ("scipy", "torch"), "QMCSampler": ("scipy",), "CmaEsSampler": ("cmaes",)}
"""Optuna's samplers that need packages which Optuna does not install."""


@functools.cache
def install(extra: str) -> str:
    """The command that installs the packages of an extra."""
    found = []
    with contextlib.suppress(metadata.PackageNotFoundError):  # run from a directory, without being installed
        for one in metadata.requires("hopaas-p2p") or []:
            requirement, _, marker = one.partition(";")
            match = _EXTRA.search(marker)
            if match is not None and match[1] == extra:
                found.append(requirement.strip())
    return "pip install " + " ".join(f"'{one}'" for one in found or [f"hopaas-p2p[{extra}]"])


def check_sampler(sampler: object) -> None:
    """Check that the packages that this sampler needs are installed, before it is used.

    Raises:
        ConfigurationError: a package is missing; the message says how to install it.

    """
    kind = type(sampler)
    needed = _OF_OPTUNA.get(kind.__name__, ()) if kind.__module__.startswith("optuna.") else ()
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(f"{kind.__name__} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
