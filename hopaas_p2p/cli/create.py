"""`hopaas-p2p study create`: from options, or from a file that describes the study."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hopaas_p2p import budget, space
from hopaas_p2p import fidelity as pauses
from hopaas_p2p.cli.options import CliSession, options
from hopaas_p2p.core.attributes import REPEATS_POLICIES
from hopaas_p2p.core.records import StudySet, TrialCreate, TrialState
from hopaas_p2p.errors import InvalidInput, StudyExists
from hopaas_p2p.moving.arrival import bring_in
from hopaas_p2p.moving.descriptions import StudyDescription
from hopaas_p2p.moving.from_yaml import read
from hopaas_p2p.moving.records import StudyRecords
from hopaas_p2p.sampler_config import PRUNERS, SAMPLERS, built, checked
from hopaas_p2p.stores.url import redacted

if TYPE_CHECKING:
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
    help="One per objective; repeat, or use commas. [default: minimize]",
)
@click.option("--space", "specs", multiple=True, metavar="SPEC", help=space.HELP + " Repeat for more.")
@click.option("--space-file", type=_FILE, metavar="FILE", help="Read the parameters from a TOML or JSON file.")
@click.option(
    "--from-yaml",
    type=_FILE,
    metavar="FILE",
    help="Read the whole definition from a W&B sweep, or from a file in Optuna's terms.",
)
@click.option("--budget", "budgets", multiple=True, metavar="N|LIMITS", help=f"{budget.HELP} [default: no limit]")
@click.option(
    "--attempts", type=int, metavar="N", help="How many times a trial is started if its peers die. [default: 3]"
)
@click.option("--max-failures", type=int, metavar="N", help="End the study after N failures in a row. [default: never]")
@click.option(
    "--lease-ttl", type=float, metavar="S", help="Take a trial over after S seconds of silence. [default: 120]"
)
@click.option("--progress-timeout", type=float, metavar="S", help="Stop a trial that reports nothing for S seconds.")
@click.option(
    "--sampler", type=click.Choice(list(SAMPLERS)), help="The sampler of all peers. [default: the one for many peers]"
)
@click.option("--pruner", type=click.Choice(list(PRUNERS)), help="The pruner of all peers. [default: median]")
@click.option(
    "--repeats",
    type=click.Choice(list(REPEATS_POLICIES)),
    help="What to do when a proposal has been tried before. [default: avoid]",
)
@click.option("--replicates", type=int, metavar="N", help="Run each configuration N times, with N seeds. [default: 1]")
@click.option("--fidelity", metavar="POLICY", help=pauses.HELP + " [default: none]")
@click.option("--exist-ok", is_flag=True, help="Succeed if the study already exists with the same definition.")
def create(
    session: CliSession,
    directions: tuple[str, ...],
    specs: tuple[str, ...],
    space_file: Path | None,
    from_yaml: Path | None,
    exist_ok: bool,
    sampler: str | None,
    pruner: str | None,
    fidelity: str | None,
    budgets: tuple[str, ...],
    **policy: Any,
) -> None:
    """Create a study, and its store if that is a directory.

    Options take precedence over the file.

    \b
    hopaas-p2p study create mnist -s ./campaign --budget 100 \\
        --space 'lr=float(1e-5,1e-1,log)' --space 'layers=int(1,8)' \\
        --space 'opt=cat(adam,sgd)' --direction maximize
    """  # noqa: D301  # click needs the backspace
    from hopaas_p2p.study import open_study

    described = StudyDescription() if from_yaml is None else read(from_yaml)
    wanted = [word.strip() for one in directions for word in one.split(",")] or described.directions
    parameters = {**described.space, **given_space(specs, space_file)}
    name = session.given["study"] or described.name or session.study_name
    storage = session.storage(create=True)
    there = name in storage.study_names()
    if there and not exist_ok:
        raise StudyExists(f"A study {name!r} already exists in {storage.url}. Join it, or choose another name.")
    given = budgets or (() if "budget" in described.policy else (session.settings.get("budget") or "",))
    policy["budget"] = budget.parsed_budget(given) if any(given) else None
    policy = {**described.policy, **{key: value for key, value in policy.items() if value is not None}}
    if fidelity is not None:
        policy["fidelity"] = pauses.parse(fidelity)
    kept = {
        kind: built(kind, checked(kind, {"name": given}) if given else described.sampler_config[kind])
        for kind, given in (("sampler", sampler), ("pruner", pruner))
        if given or (kind in described.sampler_config and not there)
    }
    made = open_study(storage, name, space=parameters or None, directions=wanted or None, **policy, **kept)
    if not there:
        _write_extras(made, described)
    notes = [*described.notes, *([_worker_command(session, made.name, described.command)] if described.command else [])]
    data = {"name": made.name, "store": storage.url, "notes": notes}
    queued = f", and queued {len(described.grid)} trials" if described.grid and not there else ""
    verb = "The study already exists:" if there else "Created study"
    session.done(data, "\n".join([f"{verb} {made.name!r} in {storage.url}{queued}.", *notes]))


def _worker_command(session: CliSession, name: str, job: str) -> str:
    """The command that starts the jobs, as it works in this directory."""
    where = f" --store {shlex.quote(redacted(session.given['store']))}" if session.given["store"] else ""
    return f"To start the jobs: hopaas-p2p worker{where} --study {shlex.quote(name)} -- {job}"


@click.command("set")
@options(study="argument")
@click.option("--budget", "budgets", multiple=True, metavar="N|LIMITS", help=f"{budget.HELP} {budget.CHANGES}")
@click.option("--space", "specs", multiple=True, metavar="SPEC", help=space.HELP + " Repeat for more.")
@click.option("--space-file", type=_FILE, metavar="FILE", help="Read the parameters from a TOML or JSON file.")
def set_(session: CliSession, budgets: tuple[str, ...], specs: tuple[str, ...], space_file: Path | None) -> None:
    """Change the budget, or give a search space to a study that has none, such as an imported one.

    \b
    hopaas-p2p study set mnist --budget trials=400,gpu_hours=500,until.target=0.02
    hopaas-p2p study set imported --space 'lr=float(1e-5,1e-1,log)' --space 'layers=int(1,8)'
    """  # noqa: D301  # click needs the backspace
    from hopaas_p2p.cli import summary

    given = given_space(specs, space_file)
    if not given and not budgets:
        raise click.UsageError("Nothing to set. Use --budget, --space NAME=…, or --space-file FILE.")
    study = session.study()
    data: dict[str, Any] = {}
    said = []
    if given:
        study.set_space(given)
        data["space"] = {name: space.spec(one) for name, one in given.items()}
        said.append(f"The search space of {study.name!r} is {', '.join(map('='.join, data['space'].items()))}.")
    if budgets:
        study.set_budget(",".join(budgets))
        data["budget"] = summary.budget_of_study(study.state)
        said.append(f"The budget of {study.name!r} is {data['budget'] or 'removed'}.")
    session.done(data, "\n".join(said))


def given_space(specs: tuple[str, ...], space_file: Path | None) -> dict[str, Any]:
    """The search space of options; raises InvalidInput."""
    given = space.read_space(space_file) if space_file else {}
    more = space.parse_space(specs)
    for name in given.keys() & more.keys():
        raise InvalidInput(f"The parameter {name!r} is both in {space_file} and in --space. Give it once.")
    return {**given, **more}


def _write_extras(study: Study, described: StudyDescription) -> None:
    """Write what a file says beyond the definition: names, attributes, the points of a grid."""
    from hopaas_p2p.translate import to_json, to_optuna

    system: dict[str, Any] = {}
    if described.metric_names is not None:
        system["study:metric_names"] = list(described.metric_names)  # Optuna's own key
    if system or described.user_attrs:
        record = StudySet(
            user={key: to_json(key, value) for key, value in described.user_attrs.items()},
            system={key: to_json(key, value) for key, value in system.items()},
        )
        study.storage.say(study.study_id, record)
    if described.grid:
        dists = {key: to_optuna(one) for key, one in described.space.items()}
        trials = {
            number: TrialCreate(
                state=TrialState.WAITING,
                params={key: float(dists[key].to_internal_repr(value)) for key, value in point.items()},
                dists=described.space,
            )
            for number, point in enumerate(described.grid)
        }
        define = study.state.define
        assert define is not None
        bring_in(study.storage, StudyRecords(define, trials), name=study.name)
