"""`hopaas-p2p study …`: create, look at, annotate and control studies."""

from __future__ import annotations

import sys
from typing import Any

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.audit import audit, print_audit
from hopaas_p2p.cli.create import create
from hopaas_p2p.cli.options import Session, options
from hopaas_p2p.cli.report import report_html
from hopaas_p2p.cli.transfer import copy, export, import_


@click.group()
def study() -> None:
    """Create, list, show, control, export, import and copy studies.

    The study is named after the verb, by --study, or by HOPAAS_STUDY.
    """


study.add_command(create)
study.add_command(export)
study.add_command(report_html)
study.add_command(import_)
study.add_command(copy)


@study.command("list")
@options(study="none")
def list_(session: Session) -> None:
    """List the studies of the store."""
    from hopaas_p2p.cli import summary
    from hopaas_p2p.study import open_study

    storage = session.storage()
    names = [frozen.study_name for frozen in storage.get_all_studies()]
    found = [summary.of_study(open_study(storage, name, create=False)) for name in names]

    def text() -> None:
        if not found:
            here = " that are shared with you" if session.store_url.startswith("postgresql") else ""
            output.say(f"no studies yet{here}; create one with: hopaas-p2p study create NAME")
            return
        output.print_table(
            ["STUDY", "STATE", "TRIALS", "RUN", "FAIL", "BEST", "NOTE"],
            [
                [
                    one["name"],
                    one["state"],
                    f"{one['trials']}" if one["budget"] is None else f"{one['used']}/{one['budget']}",
                    str(one["counts"]["RUNNING"]),
                    str(one["counts"]["FAIL"]),
                    _best_value(one["best"]),
                    " ".join([*(f"#{tag}" for tag in one["tags"]), _first_line(one["note"])]),
                ]
                for one in found
            ],
            right=("TRIALS", "RUN", "FAIL", "BEST"),
        )

    session.show(found, text)


def _first_line(note: str) -> str:
    return note.strip().split("\n", 1)[0].lstrip("# ")


def _best_value(best: Any) -> str:
    if isinstance(best, list):
        return f"{len(best)} on the front" if best else "-"
    return output.numbers(best["values"]) if best else "-"


@study.command()
@options(study="argument")
@click.option("--audit", "as_audit", is_flag=True, help="List who did what and when, from the log.")
def show(session: Session, as_audit: bool) -> None:
    """Show one study: state, trials, best, budget, and which peers run trials where."""
    from hopaas_p2p.cli import summary

    shown = session.study()
    if as_audit:
        lines = audit(shown)
        session.show(lines, lambda: print_audit(lines))
        return
    data = summary.of_study(shown) | summary.more_of_study(shown)
    session.show(data, lambda: output.print_facts(_facts(data)))


def _facts(data: dict[str, Any]) -> dict[str, str]:
    counts = ", ".join(f"{count} {state}" for state, count in data["counts"].items() if count) or "none yet"
    budget = "no end" if data["budget"] is None else f"{data['used']} of {data['budget']} used"
    facts = {"study": data["name"], "store": data["store"], "state": data["state"]}
    facts["directions"] = ", ".join(data["directions"])
    facts["trials"] = f"{data['trials']} ({counts})"
    facts["budget"] = budget
    best = data["best"] if isinstance(data["best"], list) else [data["best"]] if data["best"] else []
    facts["best"] = (
        "\n".join(
            f"#{one['number']}: {output.numbers(one['values'])}  {output.parameters(one['params'])}" for one in best
        )
        or "-"
    )
    facts["running at"] = ", ".join(f"{site}: {count}" for site, count in data["peers"].items()) or "-"
    facts["space"] = "\n".join(f"{name}: {one}" for name, one in data["space"].items()) or "define-by-run"
    policy = {name: value for name, value in data["policy"].items() if value is not None}
    said = {name: value if isinstance(value, str) else output.number(value) for name, value in policy.items()}
    facts["policy"] = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in said.items())
    if data["seen_at"]:
        facts["seen at"] = "\n".join(data["seen_at"].values())
    if data["tags"]:
        facts["tags"] = ", ".join(data["tags"])
    if data["note"]:
        facts["note"] = data["note"]
    return facts


@study.command()
@options(study="argument")
@click.option("--message", "-m", help="The new note, in Markdown; '' removes it.")
@click.option("--file", "-f", type=click.File(), help="The new note from a file; - is stdin.")
def note(session: Session, message: str | None, file: Any) -> None:
    """Print the study's note, or write it. optuna-dashboard shows it too."""
    from hopaas_p2p import notes

    annotated = session.study()
    write_or_print_note(session, annotated, None, message, file, notes)


def write_or_print_note(
    session: Session, annotated: Any, number: int | None, message: str | None, file: Any, notes: Any
) -> None:
    """The note of a study or trial: written if there is a message or a file, else printed."""
    if message is not None and file is not None:
        raise click.UsageError("give --message or --file, not both")
    text = file.read() if file is not None else message
    if text is not None:
        notes.save_note(annotated, text, number)
        session.done({"note": text}, "note saved" if text else "note removed")
        return
    found = notes.note_of(annotated, number)
    session.show({"note": found}, lambda: click.echo(output.printable(found, lines=True)) if found else None)


@study.command()
@options(study="argument")
@click.option("--add", "-a", multiple=True, metavar="TAG", help="Add this tag; repeat for more.")
@click.option("--remove", "-r", multiple=True, metavar="TAG", help="Remove this tag.")
def tag(session: Session, add: tuple[str, ...], remove: tuple[str, ...]) -> None:
    """Print the study's tags, or change them."""
    from hopaas_p2p import notes

    tags = notes.change_tags(session.study(), add=add, remove=remove)
    session.show({"tags": tags}, lambda: output.print_lines(tags))


@study.command()
@options(study="argument")
def pause(session: Session) -> None:
    """Give out no trials until `resume`; running ones go on."""
    paused = session.study()
    paused.pause()
    session.done({"state": "paused"}, f"{paused.name!r} is paused; running trials go on")


@study.command()
@options(study="argument")
@click.option("--budget", type=int, metavar="N", help="Move the budget too; 0 lifts it.")
def resume(session: Session, budget: int | None) -> None:
    """Give out trials again, also after `stop` and after too many failures."""
    from hopaas_p2p.report.facts import state_word

    resumed = session.study()
    if budget is not None:
        resumed.set_budget(budget or None)
    resumed.resume()
    word = state_word(resumed.state)
    session.done({"state": word, "budget": resumed.state.budget}, f"{resumed.name!r} is {word}")


@study.command()
@options(study="argument")
@click.option("--trials", is_flag=True, help="Ask the running trials to end, too: their next should_prune() is true.")
def stop(session: Session, trials: bool) -> None:
    """End the study: no more trials. Running ones are finished by their peers."""
    stopped = session.study()
    stopped.stop()
    running = list(stopped.state.running)
    if trials:
        for number in running:
            stopped.stop_trial(number, reason="the study is stopped")
    asked = f"; asked {len(running)} running trials to end" if trials and running else ""
    session.done({"state": "stopped", "running": running}, f"{stopped.name!r} is stopped{asked}")


@study.command()
@options(study="argument")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def rm(session: Session, yes: bool) -> None:
    """Delete a study, with its trials and its log, for ever."""
    doomed = session.study()
    state = doomed.state
    if not yes:
        running = f", {len(state.running)} of them running" if state.running else ""
        _confirm(f"Delete {doomed.name!r} with {len(state.trials)} trials{running}, for ever?")
    doomed.storage.delete_study(doomed.study_id)
    session.done({"deleted": doomed.name}, f"deleted {doomed.name!r}")


def _confirm(question: str) -> None:
    try:
        yes = click.confirm(output.printable(question), err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        output.say("")
        raise click.ClickException("nobody answered, so nothing was deleted; --yes does not ask") from None
    if not yes:
        raise click.ClickException("nothing was deleted")
