"""The commands `note` and `tag` of studies and trials."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from typing import Any

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.lazy import Group
from hopaas_p2p.cli.options import CliSession


def add_annotations(group: Group, whose: str, target: Callable[..., Any] | None = None) -> None:
    """Add `note` and `tag` to a group. `target` adds the trial's number, if the commands are for trials."""
    named: dict[str, Any] = {"study": "option" if target else "argument"}
    target = target or (lambda function: function)

    @group.command(help=f"Print {whose} note, or write it. optuna-dashboard shows it, too.", **named)
    @target
    @click.option("--message", "-m", help="The new note, in Markdown; - reads stdin, '' removes the note.")
    def note(session: CliSession, message: str | None, number: int | None = None) -> None:
        from hopaas_p2p import notes

        study = session.study()
        message = sys.stdin.read() if message == "-" else message
        if message is not None:
            notes.save_note(study, message, number)
            session.done({"note": message}, "Saved the note." if message else "Removed the note.")
            return
        text = notes.note_of(study, number)
        shown = output.printable(text, lines=True)
        session.show({"note": text}, lambda: click.echo(shown) if text else output.say("There is no note."))

    @group.command(help=f"Print {whose} tags, or change them.", context_settings={"allow_extra_args": True}, **named)
    @target
    @click.option("--add", "-a", multiple=True, metavar="TAG", help="Add this tag; repeat for more.")
    @click.option("--remove", "-r", multiple=True, metavar="TAG", help="Remove this tag; repeat for more.")
    def tag(session: CliSession, add: tuple[str, ...], remove: tuple[str, ...], number: int | None = None) -> None:
        from hopaas_p2p import notes

        if words := click.get_current_context().args:
            options = " ".join(f"--add {shlex.quote(one)}" for one in words)
            raise click.UsageError(f"Got unexpected extra arguments ({' '.join(words)}). To add tags: {options}")
        tags = notes.change_tags(session.study(), number, add=add, remove=remove)
        session.show({"tags": tags}, lambda: output.print_lines(tags) if tags else output.say("There are no tags."))
