"""Run a script written for hopaas_client as it is: `python -m hopaas_p2p.hopaas train.py --epochs 5`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import hopaas_p2p.hopaas as hopaas_client


def main() -> None:
    """The first argument is the script, the others are the script's."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m hopaas_p2p.hopaas SCRIPT [ARGUMENT …]")
    if not Path(sys.argv[1]).is_file():
        sys.exit(f"there is no script {sys.argv[1]!r}")
    own = hopaas_client.__name__
    for name, module in list(sys.modules.items()):
        if name == own or name.startswith(f"{own}."):
            sys.modules[name.replace(own, "hopaas_client", 1)] = module
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).absolute().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


main()
