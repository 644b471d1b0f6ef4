"""`hopaas-p2p demo`: see the main job done on real data, in about a minute."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import click

from hopaas_p2p import extras
from hopaas_p2p.errors import ConfigurationError


@click.command()
@click.option("--peers", type=click.IntRange(1, 16), default=3, show_default=True, help="How many processes take part.")
@click.option("--trials", type=click.IntRange(1), default=120, show_default=True, help="The study's budget.")
@click.option(
    "--seed", type=int, default=1, show_default=True, help="The first peer's seed; the others use the next ones."
)
@click.option("--store", help="Directory or URL of the store.  [default: a new directory, which is kept]")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The HTML report to write.  [default: in the store's directory]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=75,
    show_default=True,
    help="Seconds after which no more trials start.",
)
@click.option("--kill/--no-kill", default=True, show_default=True, help="Kill one peer in the middle of a trial.")
def demo(
    *, peers: int, trials: int, seed: int, store: str | None, report: Path | None, timeout: float, kill: bool
) -> None:
    """Three processes tune a classifier of hand-written digits together. One is killed; its trial is taken over.

    Every process runs Optuna; they share a directory, and there is no server. Takes about a minute on two
    cores, and ends with the best parameters, an HTML report, and commands to explore further.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise ConfigurationError(f"the demo needs scikit-learn: {extras.install('demo')}")
    from rich.console import Console

    from hopaas_p2p.demo.run import DemoOptions, run

    console = Console(highlight=False)
    try:
        run(DemoOptions(peers, trials, seed, store, report, timeout, kill), console)
    except KeyboardInterrupt:
        console.print("Interrupted. The peers returned their trials and have ended.")
        sys.exit(130)
