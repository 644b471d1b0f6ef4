"""Settings and secrets: what is taken from options, the environment and files, and which of them won.

    option  >  HOPAAS_* variable  >  ./hopaas.toml  >  ~/.config/hopaas-p2p/config.toml  >  default

A file holds `name = value` lines in TOML, with the names of `SETTINGS`. Secrets never stand in a file of settings,
which says where they are (`token_file`), and never show themselves.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from hopaas_p2p.errors import ConfigurationError


class Secret:
    """A text that is shown as `***` everywhere: in a repr, a log line, a traceback, a format. It cannot be pickled."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one call that needs it."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format("***", spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled; give other processes HOPAAS_TOKEN_FILE or HOPAAS_TOKEN")


def token(env: Mapping[str, str] = os.environ) -> Secret | None:
    """The token of `HOPAAS_TOKEN_FILE`, else of `HOPAAS_TOKEN`, else None. Read anew every time, so it may be renewed.

    Raises:
        ConfigurationError: the file cannot be read, or is empty.

    """
    return _secret("HOPAAS_TOKEN", "token", env)


def webhook_url(env: Mapping[str, str] = os.environ) -> Secret | None:
    """Where alerts go: of `HOPAAS_WEBHOOK_FILE`, else of `HOPAAS_WEBHOOK`, else None; raises as `token` does."""
    return _secret("HOPAAS_WEBHOOK", "URL", env)


def _secret(name: str, what: str, env: Mapping[str, str]) -> Secret | None:
    path = env.get(f"{name}_FILE")
    if path:
        try:
            text = Path(path).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigurationError(f"{name}_FILE={path}: {why}") from None
        if not text:
            raise ConfigurationError(f"{name}_FILE={path}: the file is empty; put the {what} into it")
        return Secret(text)
    text = env.get(name, "").strip()
    return Secret(text) if text else None


def ca_file(env: Mapping[str, str] = os.environ) -> str | None:
    """The certificate authorities to trust instead of certifi's: `HOPAAS_CA_FILE`."""
    return env.get("HOPAAS_CA_FILE") or None


def artifacts_url(env: Mapping[str, str] = os.environ) -> str | None:
    """Where files are kept, if not in the store itself: `HOPAAS_ARTIFACTS`, a directory or a URL."""
    return env.get("HOPAAS_ARTIFACTS") or None


class Setting(NamedTuple):
    """One thing that can be set."""

    help: str
    default: str | None = None
    in_files: bool = True
    """Whether a file may hold it: not a secret, and not of one moment."""
    secret: bool = False


SETTINGS: Final[dict[str, Setting]] = {
    "store": Setting("where the studies are: a directory, or a URL"),
    "study": Setting("the study that commands without a name are about"),
    "sampler": Setting("who proposes parameters in `ask`: tpe, random, gp, qmc, nsgaii", "tpe"),
    "pruner": Setting("who answers `should-prune`: median, hyperband, halving, none", "median"),
    "patience": Setting("seconds for which a command tries a store that does not answer", "20"),
    "artifacts": Setting("where files are kept if not in the store itself: a directory, or a URL"),
    "site": Setting("where this process runs, for people to read"),
    "ca_file": Setting("certificate authorities to trust instead of certifi's"),
    "token_file": Setting("a file that holds the token of a Postgres store"),
    "token": Setting("the token of a Postgres store, which its gateway takes too", in_files=False, secret=True),
    "webhook_file": Setting("a file that holds the URL that alerts are posted to"),
    "webhook": Setting("the URL that alerts are posted to", in_files=False, secret=True),
    "ticket": Setting("the trial that report, tell and the like are about", in_files=False),
}
_READ_FROM_THE_ENVIRONMENT: Final = ("artifacts", "site", "ca_file", "token_file", "webhook_file")


class Found(NamedTuple):
    """A setting's value, and where it comes from."""

    value: str | None
    origin: str


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"HOPAAS_{name.upper()}"


def user_file(env: Mapping[str, str] = os.environ) -> Path:
    """The user's own file of settings; see the XDG base directory specification."""
    base = env.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path("~/.config").expanduser()) / "hopaas-p2p" / "config.toml"


class Settings:
    """All settings as this process finds them. Files are read when first needed, once."""

    def __init__(self, *, env: MutableMapping[str, str] = os.environ, directory: Path | None = None) -> None:
        self._env = env
        self._directory = directory or Path()
        self._files: list[tuple[str, dict[str, str]]] | None = None

    def find(self, name: str, given: str | None = None) -> Found:
        """The value that wins, and its origin. `given` is what the command's option said.

        Raises:
            ConfigurationError: a file cannot be read, or holds what is no setting.

        """
        setting = SETTINGS[name]
        if given is not None:
            return Found(given, f"option --{name.replace('_', '-')}")
        if self._env.get(variable(name)):
            return Found(self._env[variable(name)], f"environment {variable(name)}")
        if setting.in_files:
            for origin, values in self._read_files():
                if name in values:
                    return Found(values[name], origin)
        return Found(setting.default, "default" if setting.default is not None else "not set")

    def get(self, name: str, given: str | None = None) -> str | None:
        """The value that wins; raises as `find` does."""
        return self.find(name, given).value

    def seconds(self, name: str) -> float:
        """The value that wins, as a positive number; raises as `find` does."""
        found = self.find(name)
        try:
            value = float(found.value or "")
        except ValueError:
            value = -1.0
        if not value > 0:
            raise ConfigurationError(f"{name} = {found.value!r} ({found.origin}): give positive seconds")
        return value

    def publish(self) -> None:
        """Put what only files say, and what the library reads from the environment, into the environment."""
        for name in _READ_FROM_THE_ENVIRONMENT:
            value = self.get(name)
            if value is not None:
                self._env[variable(name)] = value

    def _read_files(self) -> list[tuple[str, dict[str, str]]]:
        if self._files is None:
            own = user_file(self._env)
            places = {"./hopaas.toml": self._directory / "hopaas.toml", str(own): own}
            self._files = [(shown, _read_file(path)) for shown, path in places.items() if path.is_file()]
        return self._files


def _read_file(path: Path) -> dict[str, str]:
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None
    return {name: _checked(path, name, value) for name, value in content.items()}


def _checked(path: Path, name: str, value: object) -> str:
    setting = SETTINGS.get(name)
    if setting is None:
        near = difflib.get_close_matches(name, SETTINGS, n=1)
        known = ", ".join(key for key, one in SETTINGS.items() if one.in_files)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {known}"
        raise ConfigurationError(f"{path}: {name!r} is no setting; {hint}")
    if not setting.in_files:
        instead = f"Say where it is with {name}_file." if setting.secret else f"Use {variable(name)}."
        raise ConfigurationError(f"{path}: {name!r} does not belong into a file. {instead}")
    if isinstance(value, dict | list):
        raise ConfigurationError(f"{path}: {name} = {value!r}: give a text or a number")
    return str(value)
