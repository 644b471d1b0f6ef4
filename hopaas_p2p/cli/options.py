"""What all commands share: where the study is, `--json`, and the store's end when the command ends."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from hopaas_p2p.cli import output
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.settings import Settings, variable

if TYPE_CHECKING:
    from hopaas_p2p.storage import Storage
    from hopaas_p2p.study import Study

_LAST = ("store", "study", "as_json", "debug")
F = TypeVar("F", bound=Callable[..., Any])


class Session:
    """One command at work: its settings, its storage, and how it prints."""

    def __init__(self, *, store: str | None = None, study: str | None = None, as_json: bool = False) -> None:
        self.settings = Settings()
        self.given = {"store": store, "study": study}
        self.as_json = as_json
        self._storage: Storage | None = None

    @property
    def store_url(self) -> str:
        """The store the command is about.

        Raises:
            ConfigurationError: nobody said it.

        """
        return self._required("store", "--store URL")

    @property
    def study_name(self) -> str:
        """The study the command is about; raises as `store_url` does."""
        return self._required("study", "--study NAME")

    def _required(self, name: str, option: str) -> str:
        value: str | None = self.settings.get(name, self.given[name])
        if not value:
            raise ConfigurationError(f"which {name}? Say {option}, or set {variable(name)} or {name} in hopaas.toml")
        return value

    def storage(self, *, create: bool = False, **options: Any) -> Storage:
        """The store, opened; closed when the command ends."""
        if self._storage is None:
            import optuna

            from hopaas_p2p.storage import open_storage

            optuna.logging.set_verbosity(optuna.logging.WARNING)
            self.settings.publish()
            patience = self.settings.seconds("patience")
            self._storage = open_storage(self.store_url, create=create, patience=patience, **options)
        return self._storage

    def study(self, **options: Any) -> Study:
        """The study, which must be there."""
        from hopaas_p2p.study import open_study

        return open_study(self.storage(), self.study_name, create=False, **options)

    def show(self, data: Any, text: Callable[[], None]) -> None:
        """The result: `data` as JSON if that was asked for, else what `text` prints."""
        if self.as_json:
            output.print_json(data)
        else:
            text()

    def done(self, data: Any, message: str) -> None:
        """A command that has no result but that it worked: JSON, or a message on stderr."""
        if self.as_json:
            output.print_json(data)
        else:
            output.say(message)

    def close(self) -> None:
        """Send what is queued and let go of the store."""
        if self._storage is not None:
            self._storage.close()


def complete_study(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of studies, for the shell's completion; none when the store cannot be asked quickly."""
    try:
        session = Session(store=ctx.params.get("store"))
        try:
            names = session.storage().study_names()
        finally:
            session.close()
    except Exception:  # noqa: BLE001  # a completion that fails completes nothing
        return []
    return [name for name in names if name.startswith(incomplete)]


def options(*, study: Literal["none", "option", "argument"] = "option", store: bool = True) -> Callable[[F], F]:
    """Give a command the shared options, and a Session in their place.

    Args:
        study: how it is told which study: not at all, by `--study`, or by a positional name (`--study` works too).
        store: whether it takes `--store`.

    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def wrapped(
            *args: Any,
            store: str | None = None,
            study: str | None = None,
            name: str | None = None,
            as_json: bool,
            **others: Any,
        ) -> Any:
            if name is not None and study is not None and name != study:
                raise click.UsageError(f"two studies are named, {name!r} and --study {study!r}; say one")
            _be_quiet()
            session = Session(store=store, study=name if name is not None else study, as_json=as_json)
            try:
                return function(session, *args, **others)
            finally:
                session.close()

        for add in reversed(_shared(study, store=store)):
            wrapped = add(wrapped)
        params = wrapped.__click_params__  # type: ignore[attr-defined]  # last first; the shared ones are to come last
        params.sort(key=lambda param: not (isinstance(param, click.Option) and param.name in _LAST))
        return wrapped  # type: ignore[return-value]

    return decorate


def _shared(study: str, *, store: bool) -> list[Callable[[Any], Any]]:
    wanted: list[Callable[[Any], Any]] = []
    if study == "argument":
        wanted.append(click.argument("name", metavar="[STUDY]", required=False, shell_complete=complete_study))
    if store:
        wanted.append(click.option("--store", "-s", metavar="URL", help="The store: a directory or a URL."))
    if study != "none":
        wanted.append(click.option("--study", metavar="NAME", help="The study.", shell_complete=complete_study))
    wanted.append(click.option("--json", "as_json", is_flag=True, help="Print JSON."))
    wanted.append(click.option("--debug", is_flag=True, expose_value=False, help="Show a traceback on failure."))
    return wanted


def _be_quiet() -> None:
    """What libraries have to say to programmers does not belong on a user's terminal."""
    warnings.simplefilter("ignore")
