"""Groups of commands that import a command only when it is called, so that their own help needs no imports."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import click

Verb = tuple[str, str]
"""Where a command is defined ("module:attribute"), and its line in `--help`."""


class Group(click.Group):
    """A group of commands. Its `--help` shows them in sections, or else the whole first sentence of each.

    Commands in `sections` are imported on first use; others are added in click's usual way.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Mapping[str, Verb]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections or {}
        self.verbs = {name: verb for verbs in self.sections.values() for name, verb in verbs.items()}

    def command(self, *name: Any, **how: Any) -> Callable[[Callable[..., Any]], click.Command]:  # type: ignore[override]
        """Add a command; see `options.command`."""
        from hopaas_p2p.cli.options import command

        def decorate(function: Callable[..., Any]) -> click.Command:
            self.add_command(made := command(*name, **how)(function))
            return made

        return decorate

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.verbs, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = self.verbs.get(cmd_name)
        if verb is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = verb[0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            from hopaas_p2p.runtime.arguments import near

            groups = [(name, self.get_command(ctx, name)) for name in known]
            inside = [name for name, one in groups if isinstance(one, Group) and args[0] in one.list_commands(ctx)]
            found = " or ".join(f"{ctx.command_path} {name} {args[0]}" for name in inside)
            hint = f"did you mean: {found}" if found else near(args[0], known, f"there are: {', '.join(known)}.")
            raise click.UsageError(f"{args[0]!r} is not a command; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections = {title: {name: verb[1] for name, verb in verbs.items()} for title, verbs in self.sections.items()}
        if self.commands:
            sections["Commands"] = {name: one.get_short_help_str(limit=500) for name, one in self.commands.items()}
        widest = max(len(name) for rows in sections.values() for name in rows)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(widest), text) for name, text in rows.items()])
