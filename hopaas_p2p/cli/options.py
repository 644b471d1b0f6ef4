"""The parts that all commands share, which are the options for store, study and `--json`, and closing the store at the
end.
"""

from __future__ import annotations

import contextlib
import functools
import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import click

from hopaas_p2p.cli import output
from hopaas_p2p.errors import ConfigurationError, InvalidInput
from hopaas_p2p.runtime import credentials
from hopaas_p2p.runtime.redaction import redacted
from hopaas_p2p.runtime.settings import Settings, variable
from hopaas_p2p.spec import space

if TYPE_CHECKING:
    from hopaas_p2p.storage import Storage
    from hopaas_p2p.study import Study

Columns = Mapping[str, str | Callable[[dict[str, Any]], str]]
"""Header -> the key of the values in a row, or a function that gives a row's text."""
ROLES: Final = ("viewer", "worker", "owner")
ABOVE_ZERO: Final = click.FloatRange(min=0, min_open=True)
FILE: Final = click.Path(dir_okay=False, path_type=Path)
EXISTING: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER: Final = click.Path(file_okay=False, path_type=Path)
space_option = click.option("--space", "specs", multiple=True, metavar="SPEC", help=space.HELP + " Repeat for more.")
force_option = click.option("--force", is_flag=True, help="Overwrite an existing file.")
role_option = click.option("--role", type=click.Choice(ROLES), default="worker", help="What the holder may do.")
F = TypeVar("F", bound=Callable[..., Any])


def together(*adds: Callable[[Any], Any]) -> Callable[[F], F]:
    """Several options or arguments as one decorator; `--help` lists them in this order."""

    def decorate(function: F) -> F:
        for add in reversed(adds):
            function = add(function)
        return function

    return decorate


class CliSession:
    """One run of a command, with its settings, its storage, and its ways to print results."""

    def __init__(self, *, store: str | None = None, study: str | None = None, as_json: bool = False) -> None:
        self.settings = Settings(warn=output.say, names_store=bool(store))
        self.given = {"store": store, "study": study}
        if store:
            credentials.named(store)
        self.as_json = as_json
        self._storage: Storage | None = None

    @property
    def store_url(self) -> str:
        """The store that the command is about; from now on, the library uses that store's settings.

        Raises:
            ConfigurationError: no store is set, or only an untrusted file in this directory sets one.

        """
        self.settings.publish()
        return self._required("store", "--store URL")

    @property
    def study_name(self) -> str:
        """The name of the command's study; raises like `store_url`."""
        return self._required("study", "--study NAME")

    def _required(self, name: str, option: str) -> str:
        value: str | None = self.settings.get(name, self.given[name])
        if not value:
            cure = f"Use {option}, or set {variable(name)}, or set {name} in hopaas.toml."
            raise ConfigurationError(f"No {name} given. {cure}")
        return value

    def again(self, words: str) -> str:
        """A command line for the same store, with --store if this command was given that option."""
        store = self.given["store"]
        return f"hopaas-p2p {words}" + (f" --store {shlex.quote(redacted(store))}" if store else "")

    def storage(self, *, create: bool = False, **options: Any) -> Storage:
        """The store, opened on first use and closed when the command ends."""
        if self._storage is None:
            import optuna

            from hopaas_p2p.storage import open_storage

            optuna.logging.set_verbosity(optuna.logging.WARNING)
            patience = self.settings.seconds("patience")
            self._storage = open_storage(self.store_url, create=create, patience=patience, named=False, **options)
        return self._storage

    def study(self, **options: Any) -> Study:
        """The study, which must exist."""
        from hopaas_p2p.study import open_study

        return open_study(self.storage(), self.study_name, create=False, **options)

    def show(self, data: Any, text: Callable[[], None]) -> None:
        """Print the result, which is `data` as JSON with --json, or else what `text` prints."""
        if self.as_json:
            output.print_json(data)
        else:
            text()

    def show_table(
        self,
        rows: Sequence[dict[str, Any]],
        columns: Columns,
        *,
        right: Sequence[str] = (),
        optional: Sequence[str] = (),
        empty: str = "",
    ) -> None:
        """Print rows as JSON with --json, or else as a table, or the message `empty` if there are none.

        A column in `optional` is left out if it is empty in all rows.
        """

        def cell(row: dict[str, Any], column: str | Callable[[dict[str, Any]], str]) -> str:
            if callable(column):
                return column(row)
            return "-" if row[column] in (None, "") else str(row[column])

        if not rows and empty:
            self.show([], lambda: output.say(empty))
        else:
            cells = {head: [cell(row, column) for row in rows] for head, column in columns.items()}
            heads = [head for head in columns if head not in optional or set(cells[head]) - {"-"}]
            lines = [list(row) for row in zip(*(cells[head] for head in heads), strict=True)]
            self.show(rows, lambda: output.print_table(heads, lines, right=right))

    def done(self, data: Any, message: str) -> None:
        """Report success, with `data` as JSON with --json, or else with a message on stderr."""
        self.show(data, lambda: output.say(message))

    def close(self) -> None:
        """Send queued records and close the store."""
        if self._storage is not None:
            self._storage.close()


def host_and_port(listen: str) -> tuple[str, int]:
    """The address that --listen names; raises ConfigurationError."""
    host, _, port = listen.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(f"--listen {listen}: write HOST:PORT, such as 0.0.0.0:443, or the port alone")
    return host.strip("[]"), int(port)


def check_new(target: Path, *, force: bool) -> None:
    """Raise InvalidInput if a command would overwrite this file, without --force."""
    if target.is_file() and not force:
        raise InvalidInput(f"{target} already exists. Use --force to overwrite it, or another name.")


def store_named(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Record that the user named this store (`credentials.named`). It is the callback of arguments that are stores."""
    credentials.named(value or "")
    return value


def complete_study(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of studies for the shell's completion; none if the store does not answer.

    A shell inserts names verbatim, so names that would be an option, code, or several words there are omitted.
    """
    try:
        session = CliSession(store=ctx.params.get("store"))
        session.settings = Settings(warn=lambda _: None)
        with contextlib.closing(session):
            names = session.storage().study_names()
    except Exception:  # noqa: BLE001  # a failing completion completes nothing
        return []
    found = [name for name in names if name.startswith(incomplete) and not name.startswith("-")]
    return [name for name in found if output.shell_word(name) == name]


class CommandAfterDashes(click.Command):
    """A command that gets the words after `--` as the tuple `command`, which can be empty only if no command is
    needed.
    """

    def __init__(self, *args: Any, needs_command: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._needs_command = needs_command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        missing = click.UsageError("No command given. Put it after --, as in: -- python train.py", ctx)
        try:
            rest = super().parse_args(ctx, args[:at])
        except click.UsageError as error:
            if self._needs_command and "--" not in args:  # such as: worker python train.py
                raise missing from None
            if args and args[0][:1] not in ("-", "") and not any(isinstance(p, click.Argument) for p in self.params):
                raise click.UsageError(f"Name the study with an option: --study {args[0]}", ctx) from None
            raise error from None
        ctx.params["command"] = tuple(args[at + 1 :])
        if self._needs_command and not ctx.params["command"]:
            raise missing
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "-- COMMAND..."]


def command(
    title: str | None = None, *, study: Literal["none", "option", "argument"] = "option", store: bool = True, **how: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """Like `click.command`, with the shared options; the function gets them as a CliSession.

    Args:
        title: the command's name, by default the function's.
        study: how users name the study: "none", not at all; "option", with `--study`; "argument", with an argument or
            with `--study`.
        store: whether the command takes `--store`.
        how: further arguments of `click.command`.

    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def wrapped(
            *args: Any,
            store: str | None = None,
            study: str | None = None,
            name: str | None = None,
            as_json: bool,
            quiet: bool = False,
            **others: Any,
        ) -> Any:
            if name is not None and study is not None and name != study:
                raise click.UsageError(f"Name only one study: {name!r} or --study {study!r}.")
            output.quiet, output.warned = quiet, ""
            warnings.simplefilter("ignore")  # warnings are for programmers, not for users
            named = name if name is not None else study
            with contextlib.closing(CliSession(store=store, study=named, as_json=as_json)) as session:
                return function(session, *args, **others)

        as_command: Callable[..., click.Command] = click.command(title, **how)
        made = as_command(wrapped)
        if study == "argument":
            name = click.Argument(["name"], metavar="[STUDY]", required=False, shell_complete=complete_study)
            made.params.insert(0, name)
        if store:
            made.params.append(click.Option(["--store", "-s"], metavar="URL", help="The store: a directory or a URL."))
        if study != "none":
            names: dict[str, Any] = {"metavar": "NAME", "help": "The study.", "shell_complete": complete_study}
            made.params.append(click.Option(["--study"], **names))
        made.params += [
            click.Option(["--quiet", "-q"], is_flag=True, help="Print results and errors only."),
            click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
            click.Option(["--debug"], is_flag=True, expose_value=False, help="Show a traceback on failure."),
        ]
        return made

    return decorate
