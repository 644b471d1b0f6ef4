"""Commands that take a command of the user's behind `--`, and arguments of their own before it."""

from __future__ import annotations

import click


class CommandAfterDashes(click.Command):
    """Gives what stands behind `--` as `command`, a tuple of words."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        rest = super().parse_args(ctx, args[:at])
        ctx.params["command"] = tuple(args[at + 1 :])
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "-- COMMAND..."]
