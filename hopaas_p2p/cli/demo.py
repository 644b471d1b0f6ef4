"""The command `hopaas-p2p demo`, which shows the main use on real data in about a minute."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import click

from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.runtime import extras


@click.command()
@click.option("--peers", type=click.IntRange(1, 16), default=3, help="How many processes take part.")
@click.option("--trials", type=click.IntRange(1), default=120, help="The study's budget.")
@click.option("--store", help="Directory or URL of the store. [default: a new directory, which is kept]")
@click.option("--timeout", type=click.FloatRange(1), default=75, help="Seconds after which no more trials start.")
@click.option("--kill/--no-kill", default=True, help="Kill one peer in the middle of a trial.")
def demo(**given: Any) -> None:
    """Three processes tune a classifier of hand-written digits together. One is killed; its trial is taken over.

    Every process runs Optuna; they share a directory, and there is no server. The demo takes about a minute on two
    cores, and ends with the best parameters, an HTML report, and commands to explore further.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise ConfigurationError(f"the demo needs scikit-learn: {extras.install('demo')}")
    from rich.console import Console

    from hopaas_p2p.demo.run import run

    console = Console(highlight=False)
    try:
        run(console, **given)
    except KeyboardInterrupt:
        console.print("Interrupted. The peers returned their trials and have ended.")
        sys.exit(130)
