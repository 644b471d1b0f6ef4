"""Commands that take a command of the user's behind `--`, and arguments of their own before it."""

from __future__ import annotations

from typing import Any

import click


class CommandAfterDashes(click.Command):
    """Gives what stands behind `--` as `command`, a tuple of words; it is empty only if none is needed."""

    def __init__(self, *args: Any, needs_command: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._needs_command = needs_command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        missing = click.UsageError("There is no command. It goes behind --, as in: -- python train.py", ctx)
        try:
            rest = super().parse_args(ctx, args[:at])
        except click.UsageError as error:
            raise missing if self._needs_command and "--" not in args else error from None
        ctx.params["command"] = tuple(args[at + 1 :])
        if self._needs_command and not ctx.params["command"]:
            raise missing
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "-- COMMAND..."]
