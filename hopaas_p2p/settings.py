"""Settings and secrets, from options, the environment and files. The first of these wins:

    option  >  HOPAAS_* variable  >  ./hopaas.toml  >  ~/.config/hopaas-p2p/config.toml  >  default

A study that `hopaas-p2p join` has joined has a file of its own, `~/.config/hopaas-p2p/joined/NAME.toml`. HOPAAS_JOINED
names the one that counts, before the other files. If none is named, and nothing names a store, the only one there
counts.

A file holds `name = value` lines in TOML, with the names of `SETTINGS`. Secrets are never in a settings file, which
names the file that holds them (`token_file`), and are never shown.

A `hopaas.toml` comes along with a directory, and so may be somebody else's work. It counts only if the user owns it and
nobody else may write to it; it names no authority to trust, no host for the token, and no secret outside its directory.
"""

from __future__ import annotations

import difflib
import logging
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from hopaas_p2p.errors import ConfigurationError, StoreUnreachable, waits_for
from hopaas_p2p.ownership import read_own, read_secret

HERE: Final = "./hopaas.toml"
"""The origin of what this directory's file says."""

_log: Final = logging.getLogger("hopaas_p2p")


class Secret:
    """A text that is shown as `***` in a repr, a log line, a traceback or a format. It cannot be pickled."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
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
    """The token of `HOPAAS_TOKEN_FILE`, else of `HOPAAS_TOKEN`, else None. Read at every call, so it may be renewed.

    Raises:
        ConfigurationError, StoreUnreachable: as `secret_in`.

    """
    return _secret("HOPAAS_TOKEN", "token", env)


def login(user: str | None, env: Mapping[str, str] = os.environ) -> tuple[str | None, Secret | None]:
    """(role, secret) to log in with by the token, as this user if one is named; raises as `token` does.

    A token without a name is the user's secret. There is no secret if the token belongs to another user.
    """
    secret = token(env)
    role, separator, password = secret.reveal().partition(":") if secret is not None else ("", "", "")
    if not separator:
        return user, secret
    return (role, Secret(password)) if user in (None, "", role, role.rpartition(".")[0]) else (user, None)


def webhook_url(env: Mapping[str, str] = os.environ) -> Secret | None:
    """The URL for alerts, of `HOPAAS_WEBHOOK_FILE`, else of `HOPAAS_WEBHOOK`, else None; raises as `token` does."""
    return _secret("HOPAAS_WEBHOOK", "URL", env)


def _secret(name: str, what: str, env: Mapping[str, str]) -> Secret | None:
    path = env.get(f"{name}_FILE")
    if path:
        return Secret(secret_in(path, f"{name}_FILE", what))
    text = env.get(name, "").strip()
    return Secret(text) if text else None


_were_read: Final[set[str]] = set()
"""Files of secrets that this process has read."""


def secret_in(path: str, name: str, what: str) -> str:
    """The secret in this file, which is named by a variable. Where it is a token, it may be renewed at any time.

    Raises:
        ConfigurationError: the file cannot be read, or is empty.
        StoreUnreachable: not for the moment. A file that this process has read is about to be replaced, or is on a file
            system that is away.

    """
    try:
        with waits_for(f"{name}={path}"):
            text = Path(path).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        text, why = "", error.strerror if isinstance(error, OSError) else "it is not text"
    else:
        why = f"the file is empty; put the {what} into it"
    if not text:
        raise (StoreUnreachable if path in _were_read else ConfigurationError)(f"{name}={path}: {why}")
    _were_read.add(path)
    return text


def ca_file(env: Mapping[str, str] = os.environ) -> str | None:
    """The file of certificate authorities to trust instead of certifi's: `HOPAAS_CA_FILE`."""
    return env.get("HOPAAS_CA_FILE") or None


def check_token_host(servers: Iterable[tuple[str, int]], env: Mapping[str, str] = os.environ) -> None:
    """Let the token go to these (host, port) only if `HOPAAS_TOKEN_HOST` names each of them, or is not set.

    Raises:
        ConfigurationError: it names others.

    """
    allowed = set(env.get("HOPAAS_TOKEN_HOST", "").lower().replace(",", " ").split())
    for host, port in servers:
        if allowed and not allowed & {host.lower(), f"{host.lower()}:{port}"}:
            names = ", ".join(sorted(allowed))
            raise ConfigurationError(f"the token is for {names} (HOPAAS_TOKEN_HOST), and is not sent to {host}:{port}")


def artifacts_url(env: Mapping[str, str] = os.environ) -> str | None:
    """The directory or URL of files that are not kept in the store itself: `HOPAAS_ARTIFACTS`."""
    return env.get("HOPAAS_ARTIFACTS") or None


def checkpoint_cache(env: Mapping[str, str] = os.environ) -> tuple[Path, int] | None:
    """Where copies of checkpoints are kept, and bytes at most: `HOPAAS_CHECKPOINT_CACHE` and `…_CACHE_MB`.

    Raises:
        ConfigurationError: the bound is no number.

    """
    folder = env.get("HOPAAS_CHECKPOINT_CACHE")
    most = env.get("HOPAAS_CHECKPOINT_CACHE_MB") or SETTINGS["checkpoint_cache_mb"].default or ""
    if not folder:
        return None
    if not most.isascii() or not most.isdecimal():
        raise ConfigurationError(f"HOPAAS_CHECKPOINT_CACHE_MB is a whole number of megabytes, got {most!r}")
    return Path(folder), int(most) * 1_000_000


def read_proxy(path: Path) -> Secret:
    """The address of a proxy, with its login, in a file of this user's alone.

    Raises:
        ConfigurationError: it cannot be read, or others can read it.

    """
    try:
        return Secret(read_secret(path.expanduser()))
    except OSError as error:
        raise ConfigurationError(f"proxy_file = {path}: {error.strerror or error}") from None


class Setting(NamedTuple):
    """A setting."""

    help: str
    default: str | None = None
    in_files: bool = True
    """Whether a settings file may hold it; secrets and short-lived values may not be there."""
    secret: bool = False
    in_directories: bool = True
    """Whether `./hopaas.toml` may hold it, too: not what decides whom to trust."""


SETTINGS: Final[dict[str, Setting]] = {
    "store": Setting("where the studies are: a directory, or a URL"),
    "study": Setting("the study to use when a command names none"),
    "sampler": Setting("what proposes parameters in `ask`: tpe, random, gp, qmc, nsgaii", "tpe"),
    "pruner": Setting("what answers `should-prune`: median, hyperband, halving, none", "median"),
    "budget": Setting("what `study create` lets a study spend: trials, or limits such as gpu_hours=500,kwh=80"),
    "gpus": Setting("GPUs that a process here uses, if its batch job does not say"),
    "cores": Setting("cores that a process here uses, if its batch job does not say"),
    "watts": Setting("watts that a process here draws, if neither NVML nor RAPL can be read"),
    "patience": Setting("how many seconds a command keeps trying a store that does not answer", "20"),
    "artifacts": Setting("where files are kept if not in the store itself: a directory, or a URL"),
    "checkpoint_cache": Setting("a directory near the jobs of this site, for copies of checkpoints"),
    "checkpoint_cache_mb": Setting("how many megabytes of copies are kept there", "20000"),
    "site": Setting("a name for where this process runs"),
    "ca_file": Setting("certificate authorities to trust instead of certifi's", in_directories=False),
    "token_file": Setting("a file that holds the token of a Postgres store"),
    "token_host": Setting("the only host, or hosts, that the token may be sent to", in_directories=False),
    "proxy_file": Setting("a file that holds the address of this site's proxy, or of a relay", in_directories=False),
    "via": Setting("how the jobs of a joined study reach it: auto, direct, relay, bridge", in_directories=False),
    "joined": Setting("the name under which `join` keeps a study", in_files=False),
    "token": Setting("the token of a Postgres store, also accepted by its gateway", in_files=False, secret=True),
    "webhook_file": Setting("a file that holds the URL that alerts are posted to"),
    "webhook": Setting("the URL that alerts are posted to", in_files=False, secret=True),
    "ticket": Setting("the trial that report, tell and similar commands act on", in_files=False),
}
_READ_FROM_THE_ENVIRONMENT: Final = (
    "artifacts",
    "checkpoint_cache",
    "checkpoint_cache_mb",
    "site",
    "gpus",
    "cores",
    "watts",
    "ca_file",
    "token_file",
    "token_host",
    "webhook_file",
)


class SettingValue(NamedTuple):
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


def joined_folder(env: Mapping[str, str] = os.environ) -> Path:
    """Where `join` keeps how each study is reached from here."""
    return user_file(env).with_name("joined")


class Settings:
    """All settings of this process. Files are read once, when first needed.

    Args:
        env: the environment.
        directory: where hopaas.toml is looked for; the working directory by default.
        warn: told when it is there and does not count.
        names_store: whether the command names a store, so that a joined study does not count by itself.

    """

    def __init__(
        self,
        *,
        env: MutableMapping[str, str] = os.environ,
        directory: Path | None = None,
        warn: Callable[[str], None] = _log.warning,
        names_store: bool = False,
    ) -> None:
        self._env = env
        self._names_store = names_store
        self._directory = directory or Path()
        self._warn = warn
        self._files: list[tuple[str, dict[str, str]]] | None = None

    def find(self, name: str, given: str | None = None) -> SettingValue:
        """The value that wins, and its origin. `given` is the value of the command's option.

        Raises:
            ConfigurationError: a file cannot be read, or holds an unknown setting.

        """
        setting = SETTINGS[name]
        if given is not None:
            return SettingValue(given, f"option --{name.replace('_', '-')}")
        if self._env.get(variable(name)):
            return SettingValue(self._env[variable(name)], f"environment {variable(name)}")
        if setting.in_files:
            for origin, values in self._read_files():
                if name in values:
                    return SettingValue(values[name], origin)
        return SettingValue(setting.default, "default" if setting.default is not None else "not set")

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
            raise ConfigurationError(f"{name} = {found.value!r} ({found.origin}): give a positive number of seconds")
        return value

    def publish(self) -> None:
        """Put the settings that the library reads from the environment there, if only files hold them."""
        for name in _READ_FROM_THE_ENVIRONMENT:
            value = self.get(name)
            if value is not None:
                self._env[variable(name)] = value
        proxy = self.get("proxy_file")
        if proxy and not any(
            name.lower() in ("https_proxy", "all_proxy") for name, value in self._env.items() if value
        ):
            self._env["HTTPS_PROXY"] = read_proxy(Path(proxy)).reveal()

    def own(self, name: str) -> str | None:
        """What the user said, wherever this is run: in a variable or the user's own file; raises as `find` does."""
        if self._env.get(variable(name)):
            return self._env[variable(name)]
        return next((values[name] for origin, values in self._read_files() if origin != HERE and name in values), None)

    def here(self, name: str) -> str | None:
        """What this directory's file says; raises as `find` does."""
        return next((values[name] for origin, values in self._read_files() if origin == HERE and name in values), None)

    def _read_files(self) -> list[tuple[str, dict[str, str]]]:
        if self._files is None:
            self._files = []
            here = self._directory / "hopaas.toml"
            try:
                self._files.append((HERE, _checked_here(here, _parsed(here, read_own))))
            except FileNotFoundError:
                pass
            except PermissionError as error:
                self._warn(f"{HERE} is ignored: {error.strerror or error}")
            own = user_file(self._env)
            if own.is_file():
                try:
                    self._files.append((str(own), _parsed(own, Path.read_text)))
                except OSError as error:
                    raise ConfigurationError(f"{own} cannot be read: {error}") from None
            self._read_joined(self._files)
        return self._files

    def _read_joined(self, files: list[tuple[str, dict[str, str]]]) -> None:
        """Add what `join` keeps of the study that counts, if there is one."""
        named, folder = self._env.get(variable("joined")), joined_folder(self._env)
        if not named:
            if self._names_store or self._env.get(variable("store")) or any("store" in values for _, values in files):
                return
            known = sorted(path.stem for path in folder.glob("*.toml"))
            if len(known) != 1:
                return
        path = folder / f"{named or known[0]}.toml"
        try:
            values = _parsed(path, read_own)
        except FileNotFoundError:
            others = ", ".join(sorted(one.stem for one in folder.glob("*.toml"))) or "none"
            raise ConfigurationError(f"no study is joined here as {named!r}; joined: {others}") from None
        except OSError as error:
            raise ConfigurationError(f"{path} is ignored: {error.strerror or error}") from None
        files.insert(0, (str(path), values))


def _parsed(path: Path, read: Callable[[Path], str]) -> dict[str, str]:
    try:
        content = tomllib.loads(read(path))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None
    return {name: _checked(path, name, value) for name, value in content.items()}


def _checked_here(path: Path, values: dict[str, str]) -> dict[str, str]:
    """What a file may say that comes along with a directory."""
    folder = path.resolve().parent
    for name, value in values.items():
        instead = f"put it into {user_file()}, or set {variable(name)}"
        if not SETTINGS[name].in_directories:
            raise ConfigurationError(
                f"{path}: {name} decides whom to trust, which a directory's file may not; {instead}"
            )
        if name.endswith("_file") and not _is_inside(folder, value):
            raise ConfigurationError(f"{path}: {name} = {value!r} is outside this directory; {instead}")
    return values


def _is_inside(folder: Path, name: str) -> bool:
    try:
        return (folder / Path(name).expanduser()).resolve().is_relative_to(folder)
    except (OSError, RuntimeError, ValueError):  # no such user, a loop of links, a NUL
        return False


def _flat(table: dict[str, object], before: str = "") -> Iterable[str]:
    """A table as one line: `until.target=0.1`."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}={value}"


def _checked(path: Path, name: str, value: object) -> str:
    setting = SETTINGS.get(name)
    if setting is None:
        near = difflib.get_close_matches(name, SETTINGS, n=1)
        known = ", ".join(key for key, one in SETTINGS.items() if one.in_files)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {known}"
        raise ConfigurationError(f"{path}: {name!r} is not a setting; {hint}")
    if not setting.in_files:
        instead = (
            f"Put it into a file of its own, and name that with {name}_file."
            if setting.secret
            else f"Use {variable(name)}."
        )
        raise ConfigurationError(f"{path}: {name!r} does not belong in a file. {instead}")
    if name == "budget" and isinstance(value, dict):
        return ",".join(_flat(value))
    if isinstance(value, dict | list):
        raise ConfigurationError(f"{path}: {name} = {value!r}: give text or a number")
    return str(value)
