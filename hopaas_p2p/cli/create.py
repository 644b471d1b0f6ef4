"""The commands `hopaas-p2p study create`, from options or from a W&B sweep, and `study set`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from hopaas_p2p.analysis.spending import budget_lines, spending
from hopaas_p2p.cli.options import CliSession, command, space_option, together
from hopaas_p2p.core.attributes import METRIC_NAMES, REPEATS_POLICIES
from hopaas_p2p.core.records import StudySet
from hopaas_p2p.errors import StudyExists
from hopaas_p2p.moving.sweeps import StudyDescription, read
from hopaas_p2p.search.registry import PRUNERS, SAMPLERS, build
from hopaas_p2p.spec import budget, space
from hopaas_p2p.spec import fidelity as pauses

if TYPE_CHECKING:
    from hopaas_p2p.storage import Storage
    from hopaas_p2p.study import Study

_NO_POLICY: Final = ("budget", "fidelity", "sampler", "pruner", "learn_from")
"""Arguments of `open_study` that are not part of a `StudyPolicy`."""


search_options = together(
    click.option("--sampler", type=click.Choice(list(SAMPLERS)), help="The sampler that proposes parameters."),
    click.option("--pruner", type=click.Choice(list(PRUNERS)), help="The pruner that ends poor trials early."),
    click.option("--repeats", type=click.Choice(list(REPEATS_POLICIES)), help="What to do with a repeated proposal."),
    click.option("--replicates", type=int, metavar="N", help="Run each configuration N times, with N seeds."),
    click.option("--fidelity", metavar="POLICY", help=pauses.HELP),
)
"""The options for the search method, which `method_of` reads."""


def method_of(given: dict[str, Any], described: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The search settings as arguments of `open_study`, from these options, or else from a sweep."""
    described = described or {}
    method = {name: given[name] for name in ("repeats", "replicates") if given[name] is not None}
    for kind in ("sampler", "pruner"):
        if given[kind] or kind in described:
            method[kind] = build(given[kind]) if given[kind] else described[kind]
    if given["fidelity"] is not None:
        method["fidelity"] = pauses.parse(given["fidelity"])
    return method


@command(study="argument")
@click.option("--direction", "directions", multiple=True, metavar="minimize|maximize", help="One per objective.")
@space_option
@click.option("--from-yaml", type=click.Path(path_type=Path), metavar="FILE", help="A W&B sweep.")
@click.option("--budget", "budgets", multiple=True, metavar="N|LIMITS", help=f"{budget.HELP} [default: no limit]")
@click.option("--attempts", type=int, metavar="N", help="Maximum starts of a trial whose peers die. [default: 3]")
@click.option("--max-failures", type=int, metavar="N", help="End the study after N failures in a row. [default: never]")
@click.option("--lease-ttl", type=float, metavar="S", help="Seconds of silence before a takeover. [default: 120]")
@click.option("--progress-timeout", type=float, metavar="S", help="Stop a trial that reports nothing for S seconds.")
@search_options
@click.option("--learn-from", multiple=True, metavar="NAME|auto|FILE", help="Sources to learn from; repeat for more.")
@click.option("--exist-ok", is_flag=True, help="Succeed if the study already exists with the same definition.")
def create(
    session: CliSession,
    directions: tuple[str, ...],
    specs: tuple[str, ...],
    from_yaml: Path | None,
    exist_ok: bool,
    budgets: tuple[str, ...],
    learn_from: tuple[str, ...],
    **given: Any,
) -> None:
    """Create a study, and its store if the store is a directory.

    Options take precedence over a sweep. By default, one objective is minimized with a sampler made for many peers and
    the median pruner, and proposals that have been tried before are avoided. --learn-from starts from the results of a
    study in this store, of the store's newest studies (auto), or from a file that `study export --prior` wrote.

    \b
    hopaas-p2p study create mnist -s ./campaign --budget 100 \\
        --space 'lr=float(1e-5,1e-1,log)' --space 'layers=int(1,8)' \\
        --space 'opt=cat(adam,sgd)' --direction maximize
    """  # noqa: D301  # click needs the backspace
    from hopaas_p2p.study import StudyPolicy, open_study
    from hopaas_p2p.translate import to_json

    described = StudyDescription() if from_yaml is None else read(from_yaml)
    wanted = [word.strip() for one in directions for word in one.split(",")] or described.directions
    name = session.given["study"] or described.name or session.study_name
    parameters = {**described.space, **space.parse_space(specs)}
    policy = {name: given[name] for name in ("attempts", "max_failures", "lease_ttl", "progress_timeout")}
    policy["budget"] = budget.budget_of(",".join(budgets)) if budgets else described.budget
    storage = session.storage(create=True)
    there = name in storage.study_names()
    if there and not exist_ok:
        raise StudyExists(f"A study {name!r} already exists in {storage.url}. Use --exist-ok, or choose another name.")
    method = method_of(given, None if there else described.search)
    method["learn_from"] = teachers(storage, learn_from)
    given = {**{key: value for key, value in policy.items() if value is not None}, **method}
    apart = {what: given.pop(what) for what in _NO_POLICY if what in given}
    kept = StudyPolicy(**given)
    made = open_study(storage, name, space=parameters or None, directions=wanted or None, policy=kept, **apart)
    notes: list[str] = []
    if not there:
        system = {} if described.metric is None else {METRIC_NAMES: [described.metric]}
        extras = [{key: to_json(key, one) for key, one in those.items()} for those in (described.user_attrs, system)]
        if any(extras):
            made.handle.say(StudySet(user=extras[0], system=extras[1]))
        notes += [f"{one}." for one in made.learned] or _to_learn_from(session, made)
    if described.command:  # the command of the sweep, in a form that works in this directory
        worker = session.again(f"worker --study {shlex.quote(name)}")
        notes.append(f"To start the jobs: {worker} -- {described.command}")
    data = {"name": made.name, "store": storage.url, "notes": notes}
    verb = "The study already exists:" if there else "Created study"
    session.done(data, "\n".join([f"{verb} {made.name!r} in {storage.url}.", *notes]))


def teachers(storage: Storage, given: tuple[str, ...]) -> list[Any] | str:
    """The sources of `--learn-from`: studies of the store, or else files; or "auto", which must be the only one."""
    from hopaas_p2p.search.priors import Prior

    if "auto" in given:
        if len(given) > 1:
            raise click.UsageError("--learn-from auto chooses the studies itself. Omit auto, or the other sources.")
        return "auto"
    names = storage.study_names()
    return [one if one in names or not Path(one).exists() else Prior.from_file(one) for one in given]


def _to_learn_from(session: CliSession, made: Study) -> list[str]:
    """A line with the studies that the new study could learn from, and the command for it.

    The list is empty with several objectives, and in a bucket, where reading each study costs several requests.
    """
    from hopaas_p2p.study.learning import auto
    from hopaas_p2p.translate import to_record

    if len(made.directions) > 1 or made.storage.peer.catalog.rate_limited is not None:
        return []
    space = {name: to_record(one) for name, one in made.space.items()}
    found = ", ".join(one.name for one in auto(made.storage, space, made.name))
    command = session.again(f"study set {shlex.quote(made.name)} --learn-from auto")
    return [f"This study can learn from {found}. To do so: {command}"] if found else []


@command("set", study="argument")
@click.option("--budget", "budgets", multiple=True, metavar="N|LIMITS", help=f"{budget.HELP} {budget.CHANGES}")
@space_option
@search_options
@click.option("--learn-from", multiple=True, metavar="NAME|auto|FILE|none", help="Learn from these sources instead.")
def set_(
    session: CliSession, budgets: tuple[str, ...], specs: tuple[str, ...], learn_from: tuple[str, ...], **given: Any
) -> None:
    """Change a study's budget, its search method from the next trial on, or the studies that it learns from.

    A study that has no search space, such as an imported one, can be given one.

    \b
    hopaas-p2p study set mnist --budget trials=400,gpu_hours=500,until.target=0.02
    hopaas-p2p study set mnist --sampler tpe --repeats allow
    hopaas-p2p study set mnist --learn-from mnist-small --learn-from mnist-2025
    hopaas-p2p study set imported --space 'lr=float(1e-5,1e-1,log)' --space 'layers=int(1,8)'
    """  # noqa: D301  # click needs the backspace
    parameters, method = space.parse_space(specs), method_of(given)
    if not (parameters or budgets or method or learn_from):
        raise click.UsageError("Nothing to set. Use --budget, --sampler, --fidelity, --learn-from or --space NAME=….")
    study = session.study()
    data: dict[str, Any] = {}
    said = []
    if parameters:
        study.set_space(parameters)
        data["space"] = {name: space.spec(one) for name, one in parameters.items()}
        said.append(f"The search space of {study.name!r} is {', '.join(map('='.join, data['space'].items()))}.")
    if budgets:
        study.set_budget(",".join(budgets))
        data["budget"] = budget.words(budget.budget_now(study.state))
        said.append(f"The budget of {study.name!r}: {'; '.join(budget_lines(spending(study.state)))}.")
    if method:
        from hopaas_p2p.cli.summary import search_in_words

        if "fidelity" in method:
            method["fidelity"] = method["fidelity"] or "none"
        study.search_with(**method)
        data["search"] = search_in_words(study.state.system)
        said.append(f"Peers search with {', '.join(f'{name}: {one}' for name, one in data['search'].items())}.")
    if learn_from:
        learned = study.learn_from(() if learn_from == ("none",) else teachers(study.storage, learn_from))
        data["learned"] = [one._asdict() for one in learned]
        said += [f"{one}." for one in learned] or [f"{study.name!r} learns from no other study."]
    session.done(data, "\n".join(said))
