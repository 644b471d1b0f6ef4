"""`hopaas-p2p study create`: from options, or from a file that describes the study."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hopaas_p2p.cli import space
from hopaas_p2p.cli.options import Session, options
from hopaas_p2p.stores.url import redacted

if TYPE_CHECKING:
    from hopaas_p2p.cli.described import Described
    from hopaas_p2p.storage import Storage
    from hopaas_p2p.study import Study

_FILE = click.Path(path_type=Path)


@click.command()
@options(study="argument")
@click.option(
    "--direction",
    "--directions",
    "directions",
    multiple=True,
    metavar="minimize|maximize",
    help="Once for each objective, or with commas. [default: minimize]",
)
@click.option("--space", "specs", multiple=True, metavar="SPEC", help=space.HELP + " Repeat for more.")
@click.option("--space-file", type=_FILE, metavar="FILE", help="The parameters from a TOML or JSON file.")
@click.option("--from-yaml", type=_FILE, metavar="FILE", help="All of it from a W&B sweep, or in Optuna's words.")
@click.option(
    "--budget", type=int, metavar="N", help="COMPLETE + PRUNED trials wanted, over all peers. [default: no end]"
)
@click.option("--attempts", type=int, metavar="N", help="Starts of one set of parameters, when peers die. [default: 3]")
@click.option("--max-failures", type=int, metavar="N", help="Failures in a row that end the study. [default: never]")
@click.option(
    "--lease-ttl", type=float, metavar="S", help="Seconds of silence until a trial is taken over. [default: 120]"
)
@click.option("--progress-timeout", type=float, metavar="S", help="Seconds without a report until a trial is stopped.")
@click.option("--exist-ok", is_flag=True, help="Do not fail when the study exists with this same definition.")
def create(
    session: Session,
    directions: tuple[str, ...],
    specs: tuple[str, ...],
    space_file: Path | None,
    from_yaml: Path | None,
    exist_ok: bool,
    **policy: Any,
) -> None:
    """Create a study, and its store if that is a directory.

    What options say wins over what a file says.

    \b
    hopaas-p2p study create mnist -s ./campaign --budget 100 \\
        --space 'lr=float(1e-5,1e-1,log)' --space 'layers=int(1,8)' \\
        --space 'opt=cat(adam,sgd)' --direction maximize
    """  # noqa: D301  # click wants the backspace
    from hopaas_p2p.cli.described import Described, read
    from hopaas_p2p.errors import StudyExists
    from hopaas_p2p.study import open_study

    told = Described() if from_yaml is None else read(from_yaml)
    wanted = [word.strip() for one in directions for word in one.split(",")] or told.directions
    given = {key: value for key, value in policy.items() if value is not None}
    parameters = {**told.space, **_space(specs, space_file)}
    name = session.given["study"] or told.name or session.study_name
    storage = session.storage(create=True)
    there = name in storage.study_names()
    if there and not exist_ok:
        raise StudyExists(f"a study {name!r} exists already in {storage.url}; join it, or choose another name")
    made = open_study(storage, name, space=parameters or None, directions=wanted or None, **{**told.policy, **given})
    if not there:
        _furnish(made, told)
    notes = [*told.notes, *([_started(session, made.name, told.job)] if told.job else [])]
    data = {"name": made.name, "store": storage.url, "notes": notes}
    queued = f", with {len(told.grid)} trials to run" if told.grid and not there else ""
    session.done(data, "\n".join([f"created study {made.name!r} in {storage.url}{queued}", *notes]))


def _started(session: Session, name: str, job: str) -> str:
    """How jobs are started: a line that works where this command was typed."""
    where = f" --store {shlex.quote(redacted(session.given['store']))}" if session.given["store"] else ""
    return f"start the jobs with: hopaas-p2p worker{where} --study {shlex.quote(name)} -- {job}"


def _space(specs: tuple[str, ...], space_file: Path | None) -> dict[str, Any]:
    from hopaas_p2p.errors import InvalidInput

    given = space.read_space(space_file) if space_file else {}
    more = space.parse_space(specs)
    for name in given.keys() & more.keys():
        raise InvalidInput(f"the parameter {name!r} is in {space_file} and in --space; say it once")
    return {**given, **more}


def _furnish(study: Study, told: Described) -> None:
    """What a file says beyond the definition: names, attributes, who proposes and prunes, the points of a grid."""
    from hopaas_p2p.cli.made_with import ATTRIBUTE
    from hopaas_p2p.core.records import StudySet
    from hopaas_p2p.translate import to_json

    system: dict[str, Any] = {}
    if told.metric_names is not None:
        system["study:metric_names"] = list(told.metric_names)  # where Optuna keeps them
    if told.made_with:
        system[ATTRIBUTE] = told.made_with
    if system or told.user_attrs:
        record = StudySet(
            user={key: to_json(key, value) for key, value in told.user_attrs.items()},
            system={key: to_json(key, value) for key, value in system.items()},
        )
        study.storage.say(study.study_id, record)
    if told.grid:
        _queue(study.storage, study.name, told)


def _queue(storage: Storage, name: str, told: Described) -> None:
    """Every point as a trial that waits to be run; many go with one commit."""
    from hopaas_p2p.core.records import TrialCreate, TrialState
    from hopaas_p2p.export.arrival import bring_in
    from hopaas_p2p.export.portable import Portable, PortableTrial
    from hopaas_p2p.translate import to_optuna

    dists = {key: to_optuna(one) for key, one in told.space.items()}
    trials = [
        PortableTrial(
            number,
            TrialCreate(
                state=TrialState.WAITING,
                params={key: float(dists[key].to_internal_repr(value)) for key, value in point.items()},
                dists=told.space,
            ),
            {},
        )
        for number, point in enumerate(told.grid or ())
    ]
    bring_in(storage, Portable(name, None, trials), name=name)
