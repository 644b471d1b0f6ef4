"""Settings from options, the environment and files. The first source that has a value wins:

    option  >  HOPAAS_* variable  >  ./hopaas.toml  >  ~/.config/hopaas-p2p/config.toml  >  default

A study joined with `hopaas-p2p join` has a file of its own, `~/.config/hopaas-p2p/joined/NAME.toml`. HOPAAS_JOINED
selects one, which takes precedence over the other files. If none is selected, and nothing names a store, a joined
study's file counts if it is the only one.

A file holds `name = value` lines in TOML, with the names of `SETTINGS`. Secrets are never in a settings file, which
names the file that holds them (`token_file`), and are never shown; `credentials` reads them.

A `hopaas.toml` comes with a directory, and so may be somebody else's work. It counts only if the user owns it and
nobody else may write to it. Until the user trusts it (`trust`, by path and content), it may set only names and
numbers, but no host, no path outside its folder, and no secret file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tomllib
import unicodedata
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Final, Literal, NamedTuple, NoReturn

from hopaas_p2p.errors import ConfigurationError, explained
from hopaas_p2p.runtime.arguments import expanded, near, shortened, shown
from hopaas_p2p.runtime.atomic import read_own, read_secret, write_private
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.runtime.redaction import redacted

HERE: Final = "./hopaas.toml"
"""The origin of settings from this directory's file."""
_LARGEST: Final = 1 << 14
"""Bytes of a file, which may be untrusted. The time to parse TOML grows with the square of a dotted key's length."""
_LONGEST: Final = 4096
"""Characters of a value in a file."""
_LINE: Final = 300
"""Characters of an error in a file's form, which may quote the file."""
_BREAKS: Final = frozenset({"Cc", "Zl", "Zp"})
"""Unicode's categories of control characters and line breaks."""
_OF_THE_JOINED: Final = ("token_file", "token_host")
"""Settings for a joined study's host only, which `credentials` reads, and which are never published."""


class Secret:
    """A string that is shown as `***` in a repr, a log line, a traceback or a format. It cannot be pickled."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The string itself."""
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


def ca_file(env: Mapping[str, str] = os.environ) -> str | None:
    """The file of authorities to trust instead of certifi's, from `HOPAAS_CA_FILE`; None if it is not set."""
    return env.get("HOPAAS_CA_FILE") or None


def artifacts_url(env: Mapping[str, str] = os.environ) -> str | None:
    """Where files are that are not kept in the store itself, from `HOPAAS_ARTIFACTS`; None if it is not set."""
    return env.get("HOPAAS_ARTIFACTS") or None


def read_proxy(path: Path) -> Secret:
    """The address of a proxy, with its login, from a file that only this user can read.

    Raises:
        ConfigurationError: the file cannot be read, can be read by others, or is not one line.

    """
    with explained(f"proxy_file = {path}"):
        text = read_secret(expanded(path))
    if not is_one_line(text):
        raise ConfigurationError(f"proxy_file = {path}: this is not one line of text")
    return Secret(text)


class Setting(NamedTuple):
    """A setting: its help text, its default, and where it may be set."""

    help: str
    default: str | None = None
    in_files: bool = True
    """Whether a settings file may contain it; secrets and short-lived values are not allowed there."""
    secret: bool = False
    untrusted: Literal["no", "inside", "yes"] = "no"
    """Whether the setting counts in an untrusted `./hopaas.toml`. Settings that say where data is sent to or read from
    do not; with "inside", a directory in the file's own folder does."""


SETTINGS: Final[dict[str, Setting]] = {
    "store": Setting("where the studies are: a directory, or a URL", untrusted="inside"),
    "study": Setting("the study to use when a command names none", untrusted="yes"),
    "gpus": Setting("GPUs per process, instead of what the batch system reports", untrusted="yes"),
    "cores": Setting("cores per process, instead of what the batch system reports", untrusted="yes"),
    "watts": Setting("watts per process, if NVML cannot be read", untrusted="yes"),
    "patience": Setting("how many seconds a command keeps trying a store that does not answer", "20", untrusted="yes"),
    "artifacts": Setting("where files are kept if not in the store itself: a directory, or a URL", untrusted="inside"),
    "site": Setting("the name of the site where this process runs", untrusted="yes"),
    "ca_file": Setting("certificate authorities to trust instead of certifi's"),
    "token_file": Setting("a file that holds the token of a Postgres or served store"),
    "token_host": Setting("the only host, or hosts, that the token may be sent to"),
    "proxy_file": Setting("a file that holds the address of this site's proxy, or of a relay"),
    "via": Setting("how jobs of a joined study reach its store: auto, direct, folder"),
    "joined": Setting("the name of the joined study to use", in_files=False),
    "token": Setting("the token of a Postgres or served store", in_files=False, secret=True),
    "webhook_file": Setting("a file that holds the URL that alerts are posted to"),
    "webhook": Setting("the URL that alerts are posted to", in_files=False, secret=True),
    "ticket": Setting("the trial that report, tell and similar commands act on", in_files=False),
}
_OF_THE_LIBRARY: Final = ("artifacts", "site", "gpus", "cores", "watts", "ca_file", "token_file", "token_host")
"""Settings that the library reads from the environment; `publish` puts them there."""


class SettingValue(NamedTuple):
    """A setting's value, and where it comes from."""

    value: str | None
    origin: str
    counts: bool = True
    """False if the value is in a `./hopaas.toml` that must be trusted first."""


class _File(NamedTuple):
    origin: str
    values: dict[str, str]
    trusted: bool = True


def is_one_line(text: str) -> bool:
    """Whether a string has no line break or other control character, so that it fits in a script or a table."""
    return all(unicodedata.category(letter) not in _BREAKS for letter in text)


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"HOPAAS_{name.upper()}"


def config_folder(env: Mapping[str, str] = os.environ) -> Path:
    """The folder of this user's settings; see the XDG base directory specification.

    Raises:
        ConfigurationError: the user has no home directory, as in some batch jobs and containers.

    """
    base = Path(env.get("XDG_CONFIG_HOME", ""))
    try:
        return (base if base.is_absolute() else Path("~/.config").expanduser()) / "hopaas-p2p"
    except RuntimeError:
        raise ConfigurationError(
            "there is no home directory for your settings; set XDG_CONFIG_HOME to a directory of yours"
        ) from None


def user_file(env: Mapping[str, str] = os.environ) -> Path:
    """The user's own settings file; raises like `config_folder`."""
    return config_folder(env) / "config.toml"


def joined_folder(env: Mapping[str, str] = os.environ) -> Path:
    """The folder in which `join` stores how to reach each study; raises like `config_folder`."""
    return config_folder(env) / "joined"


def joined_names(env: Mapping[str, str] = os.environ) -> list[str]:
    """The names of all studies joined here; raises like `config_folder`."""
    return sorted(path.stem for path in joined_folder(env).glob("*.toml"))


def left_hosts(env: Mapping[str, str] = os.environ) -> set[str]:
    """The hosts of the joined studies that were left here; raises like `joined`."""
    try:
        path = joined_folder(env) / "left"
    except ConfigurationError:  # no home directory, so nothing in it
        return set()
    with explained(f"{path} cannot be read"):
        return set(read_own(path).splitlines()) if path.exists() else set()


def joined(name: str, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The stored settings of the study that was joined under this name (HOPAAS_JOINED).

    Raises:
        ConfigurationError: there is no such file, or somebody else may have written it.

    """
    folder = joined_folder(env)
    path = folder / f"{name}.toml"
    if path.parent != folder:
        raise ConfigurationError(f"HOPAAS_JOINED={name!r} is not the name of a joined study")
    with explained(f"{path} cannot be used"):
        if not path.exists():
            others = ", ".join(joined_names(env)) or "none"
            raise ConfigurationError(f"no study is joined here as {name!r}; joined: {others}")
        return _parsed(path, read_own(path, limit=_LARGEST))


def trust(file: Path, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Make a directory's settings file the user's own, at this path and with this content; return its settings.

    Raises:
        ConfigurationError: somebody else may have written the file, it cannot be read, or the trust cannot be recorded.

    """
    path = _in_place(file)
    with explained(f"{file} is not trusted"):
        text = read_own(path, link=False, limit=_LARGEST)
    values = _parsed(path, text)
    record = _record_of_trust(path, text, env)
    with explained(f"{record.parent} cannot be written", "; set XDG_CONFIG_HOME to a directory of yours"):
        write_private(record, str(path))
    return values


def _is_trusted(path: Path, text: str, env: Mapping[str, str]) -> bool:
    with contextlib.suppress(OSError, UnicodeDecodeError, ConfigurationError):
        return read_own(_record_of_trust(path, text, env), link=False) == str(path)
    return False


def _record_of_trust(path: Path, text: str, env: Mapping[str, str]) -> Path:
    digest = hashlib.sha256(os.fsencode(path) + b"\0" + text.encode()).hexdigest()
    return config_folder(env) / "trusted" / digest


def _in_place(file: Path) -> Path:
    """The file's path with links resolved; the file itself must not be a link."""
    return file.parent.resolve() / file.name


class Settings:
    """All settings of this process. Files are read once, when first needed.

    Args:
        env: the environment.
        directory: where to look for hopaas.toml; by default, the working directory.
        warn: called with a message if that file exists but does not count.
        names_store: whether the command names a store, so that a joined study is not used automatically.

    """

    def __init__(
        self,
        *,
        env: MutableMapping[str, str] = os.environ,
        directory: Path | None = None,
        warn: Callable[[str], None] = LOG.warning,
        names_store: bool = False,
    ) -> None:
        self._env = env
        self._names_store = names_store
        self._directory = directory or Path()
        self._warn = warn
        self._files: list[_File] | None = None
        self._joined = self._joined_origin = ""
        """The joined study that counts, and its file."""

    def look(self, name: str, given: str | None = None) -> SettingValue:
        """The winning value, whether it counts or not, and its origin. `given` is the value of the command's option.

        Raises:
            ConfigurationError: a file cannot be read, or contains an unknown setting.

        """
        setting = SETTINGS[name]
        if given is not None:
            return SettingValue(given, f"option --{name.replace('_', '-')}")
        if self._env.get(variable(name)):
            return SettingValue("***" if setting.secret else self._env[variable(name)], f"environment {variable(name)}")
        if setting.in_files:
            for file in self._read_files():
                if name in file.values:
                    value = file.values[name]
                    inside = setting.untrusted == "inside" and _is_inside(self._directory.resolve(), value)
                    return SettingValue(value, file.origin, file.trusted or inside or setting.untrusted == "yes")
        return SettingValue(setting.default, "default" if setting.default is not None else "not set")

    def find(self, name: str, given: str | None = None) -> SettingValue:
        """The winning value, and its origin; a secret's value is `***` (see `credentials`).

        Raises:
            ConfigurationError: as in `look`; or the value comes from this directory's file, for a setting that only the
                user may choose, or contains a line break or another control character.

        """
        found = self.look(name, given)
        if not found.counts:
            raise ConfigurationError(
                f"{found.origin} came with this directory, so its {name} "
                "has no effect until you trust the file: read it, then run hopaas-p2p config trust"
            )
        if SETTINGS[name].in_files and not is_one_line(found.value or ""):
            said = shown(redacted(found.value or ""))
            raise ConfigurationError(f"{name} = {said} ({found.origin}): this is not one line of text")
        return found

    def get(self, name: str, given: str | None = None) -> str | None:
        """The winning value, or None; raises like `find`."""
        return self.find(name, given).value

    def seconds(self, name: str) -> float:
        """The winning value, as a positive number; raises like `find`."""
        found = self.find(name)
        value = -1.0
        with contextlib.suppress(ValueError):
            value = float(found.value or "")
        if not value > 0:
            raise ConfigurationError(
                f"{name} = {shown(found.value)} ({found.origin}): give a positive number of seconds"
            )
        return value

    def publish(self) -> None:
        """Put settings that the library reads from the environment there, if they are set only in files."""
        for name in (*_OF_THE_LIBRARY, "webhook_file"):
            value = self.get(name)
            if value is not None:
                self._env[variable(name)] = value
        if self._joined:
            self._env[variable("joined")] = self._joined
        proxy = self.get("proxy_file")
        if proxy and not any(
            name.lower() in ("https_proxy", "all_proxy") for name, value in self._env.items() if value
        ):
            self._env["HTTPS_PROXY"] = read_proxy(Path(proxy)).reveal()

    def own(self, name: str) -> str | None:
        """The user's own setting, or None. Untrusted files and joined studies do not count. Raises like `look`."""
        if self._env.get(variable(name)):
            return self._env[variable(name)]
        files = [file for file in self._read_files() if file.origin != self._joined_origin and file.trusted]
        return next((file.values[name] for file in files if name in file.values), None)

    def _read_files(self) -> list[_File]:
        if self._files is not None:
            return self._files
        self._files = []
        here = _in_place(self._directory / "hopaas.toml")
        try:
            text = read_own(here, link=False, limit=_LARGEST)
            self._files.append(_File(HERE, _parsed(here, text), _is_trusted(here, text, self._env)))
        except FileNotFoundError:
            pass
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{here} cannot be read: {error}") from None
        except OSError as error:
            self._warn(f"{HERE} is ignored: {error.strerror or error}")
        try:
            own = user_file(self._env)
        except ConfigurationError:
            return self._files
        if own.is_file():
            with explained(f"{own} cannot be read"):
                text = read_own(own, owners=(os.geteuid(), 0), limit=_LARGEST)
                self._files.append(_File(str(own), _parsed(own, text)))
        self._read_joined(self._files)
        return self._files

    def _read_joined(self, files: list[_File]) -> None:
        """Add the settings that `join` stored for the study that counts, if there is one."""
        named = self._env.get(variable("joined"))
        if self._names_store or self._env.get(variable("store")):
            return
        if not named:
            if any("store" in file.values for file in files):
                return
            known = joined_names(self._env)
            if len(known) != 1:
                return
            (named,) = known
        values = joined(named, self._env)
        self._joined, self._joined_origin = named, str(joined_folder(self._env) / f"{named}.toml")
        ours = {name: value for name, value in values.items() if name not in _OF_THE_JOINED}
        files.insert(0, _File(self._joined_origin, ours))


def _parsed(path: Path, text: str) -> dict[str, str]:
    try:
        return {name: _checked(path, name, value) for name, value in tomllib.loads(text).items()}
    except (ValueError, RecursionError) as error:  # not TOML; a number with thousands of digits; endless nesting
        raise ConfigurationError(f"{path} cannot be read: {shortened(str(error), _LINE)}") from None


def _is_inside(folder: Path, name: str) -> bool:
    """Whether this is a path in this folder, and not a URL."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # no such user, a loop of links, a NUL
        return ":" not in name and (folder / Path(name).expanduser()).resolve().is_relative_to(folder)
    return False


def _checked(path: Path, name: str, value: object) -> str:
    setting = SETTINGS.get(name)
    if setting is None:
        known = ", ".join(key for key, one in SETTINGS.items() if one.in_files)
        raise ConfigurationError(
            f"{path}: {shown(name)} is not a setting; {near(name, SETTINGS, f'the settings are: {known}')}"
        )
    if not setting.in_files:
        instead = (
            f"Put it into a file of its own, and set {name}_file to its path."
            if setting.secret
            else f"Use {variable(name)}."
        )
        raise ConfigurationError(f"{path}: {name!r} does not belong in a file. {instead}")
    if isinstance(value, dict | list):
        raise ConfigurationError(f"{path}: {name} = {shown(value)}: give text or a number")
    text = str(value)
    if len(text) > _LONGEST:
        raise ConfigurationError(f"{path}: {name} has {len(text):,} characters; at most {_LONGEST:,} are read")
    return text
