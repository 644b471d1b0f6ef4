"""The commands `note` and `tag` of studies and trials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.options import CliSession


def add_annotations(group: click.Group, whose: str, target: Callable[..., Any]) -> None:
    """Add the commands to a group. `target` adds what names the study, or the study and the trial's number."""

    @group.command(help=f"Print {whose} note, or write it. optuna-dashboard shows it too.")
    @target
    @click.option("--message", "-m", help="The new note, in Markdown; '' removes it.")
    @click.option("--file", "-f", type=click.File(), help="The new note from a file; - is stdin.")
    def note(session: CliSession, message: str | None, file: Any, number: int | None = None) -> None:
        from hopaas_p2p import notes

        if message is not None and file is not None:
            raise click.UsageError("give --message or --file, not both")
        study = session.study()
        text = file.read() if file is not None else message
        if text is not None:
            notes.save_note(study, text, number)
            session.done({"note": text}, "Saved the note." if text else "Removed the note.")
            return
        found = notes.note_of(study, number)

        def show_note() -> None:
            if found:
                click.echo(output.printable(found, lines=True))
            else:
                output.say("There is no note.")

        session.show({"note": found}, show_note)

    @group.command(help=f"Print {whose} tags, or change them.")
    @target
    @click.option("--add", "-a", multiple=True, metavar="TAG", help="Add this tag; repeat for more.")
    @click.option("--remove", "-r", multiple=True, metavar="TAG", help="Remove this tag.")
    def tag(session: CliSession, add: tuple[str, ...], remove: tuple[str, ...], number: int | None = None) -> None:
        from hopaas_p2p import notes

        tags = notes.change_tags(session.study(), number, add=add, remove=remove)
        session.show({"tags": tags}, lambda: output.print_lines(tags) if tags else output.say("There are no tags."))
