"""The only module that reads credentials, and the only gate through which they leave it.

A credential is sent to hosts that the user named on the command line, in the environment, or in the user's own settings
file. Hosts that somebody else named get none, as in a ticket or in a file of results from another machine
(`check_named`). Settings that came with a directory do not count before they are trusted (`settings`). The host of a
joined study gets the token that came with its invitation, and none of the user's own.

The files that `join` wrote define which hosts belong to a joined study, even if a ticket or the spool leads there. When
the study is left, its host does not become one that the user named.

Processes that we start get an environment with only the variables named here, never a copy of ours (`environment`). The
user's own training command gets a copy without the credentials that were not passed explicitly (`without_credentials`).
"""

from __future__ import annotations

import configparser
import contextlib
import hmac
import netrc
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

from hopaas_p2p.errors import ConfigurationError, StoreUnreachable, explained, waits_for
from hopaas_p2p.runtime import settings
from hopaas_p2p.runtime.atomic import read_named, read_own
from hopaas_p2p.runtime.settings import Secret, Settings

Server = tuple[str, int]
"""(host, port); (path, 0) for a Unix socket."""

_TOKEN, _KEYS, _IDENTITY = "your token", "your keys", "your identity token"
_AMAZON: Final = re.compile(r"(s3|sts)(-fips)?([.-](dualstack\.)?[a-z]{2}(-[a-z]+)+-\d)?\.amazonaws\.com(\.cn)?")
"""Amazon's own hosts; other names in its domain belong to its customers."""
_PORTS: Final = {"postgresql": 5432, "postgresql+psycopg2": 5432, "https": 443, "http": 80}
WHERE: Final = frozenset(
    {"host", "port", "endpoint", "region", "style", "connect_timeout", "application_name", "target_session_attrs"}
)
"""Options of a store's URL that only say where the store is."""
_AMAZONS: Final = "s3 of amazonaws.com"
"""Stands for all of Amazon's servers, among those that the user named."""
_named: Final[set[str]] = set()
"""`host:port` of each store that the user named to this process."""
_WANDB_NAMES: Final = {"entity", "project", "mode", "disabled"}
_UNGUESSABLE: Final = 32  # characters; a shorter secret could be found from a seal by trying words

# --- which variables there are ---------------------------------------------------------------------------------------

_AWS: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
)
_POSTGRES: Final = ("HOPAAS_TOKEN", "HOPAAS_TOKEN_FILE", "HOPAAS_TOKEN_HOST", "PGPASSWORD", "PGPASSFILE")
_SECRETS: Final = frozenset(
    {"HOPAAS_TOKEN", "HOPAAS_WEBHOOK", "HOPAAS_TICKET", "MLFLOW_TRACKING_USERNAME", "SSHPASS"}
    | {"AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"}
)
"""Variables that are credentials, although their names do not show it."""
_LOOKS_SECRET: Final = re.compile(
    r"(^|_)(TOKEN|PASS|CREDENTIALS?|CREDS?|JWT|(API|ACCESS|PRIVATE)_?KEY|COOKIE|BEARER|WEBHOOK)\d*(_|$)"
    r"|(^|_)CONNECTION_STRING\d*(_|$)"
    r"|SECRET|PASSWORD|PASSWD|PASSPHRASE|_KEY(_ID)?$|(API_?KEY|(API|ACCESS)_?TOKEN)S$|_(AUTH|AUTH_CONFIG|PAT|PWD?)$"
    r"|AUTHORI[SZ]ATION|AUTH_HEADER|^(BW|OP)_SESSION|TOKEN$",
    re.IGNORECASE,
)
_SECRET_IN_VALUE: Final = re.compile(
    r"://[^/@:\s]*:[^/@\s]+@|https?://[^/@\s]+@|(password|passwd|secret|signature|(account|access)key)=[^\s&;]"
    r"|[?&;](pwd|sig|token)=|\b(bearer\s|authorization\s*[:=])|-----BEGIN [A-Z ]*PRIVATE KEY|//hooks\.slack\.com/"
    r"|\bhpj1-|\.[0-9a-f]{8}:[\w-]{43}\b|\b(gh[a-z]|github_pat|hf)_\w{20}"  # an invitation, a token
    r"|\b(glpat|xox[a-z])-[\w-]{20}|\bsk-(proj-|ant-\w+-)?\w{20}|\beyJ[\w-]{10,}\.[\w-]+\.",
    re.IGNORECASE,
)
_POINTS: Final = re.compile(r"_(FILE|PATH|DIR|HOST)$")
"""Names of variables that say where a credential is, or where it is sent."""
_PROXIES: Final = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
_NAMED: Final = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|TERM|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|TMP|TEMP|XDG_\w+|PWD"
    r"|LD_LIBRARY_PATH|LD_PRELOAD|LIBRARY_PATH|CPATH|MANPATH|PYTHON\w+|VIRTUAL_ENV|CONDA_(PREFIX|DEFAULT_ENV|EXE|SHLVL)\w*"
    r"|MODULEPATH|MODULESHOME|MODULES_\w+|LOADEDMODULES|_LMFILES_|LMOD_\w+|BASH_ENV|ENV|BASH_FUNC_(module|ml)(%%|\(\))"
    r"|(SLURM|SBATCH|SQUEUE|PBS|LSF|LSB|SGE|CONDOR|_CONDOR)_\w+|KUBECONFIG|KRB5CCNAME|KRB5_CONFIG"
    r"|(CUDA|NVIDIA|NCCL|ROCR|HIP|ROCM|OMP|MKL|OPENBLAS|NUMEXPR|KMP|GOMP|MALLOC)_\w+"
    r"|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|AWS_CA_BUNDLE|NO_PROXY|no_proxy"
    r"|AWS_(DEFAULT_)?(REGION|PROFILE)|AWS_(SHARED_CREDENTIALS|CONFIG)_FILE|PGPASSFILE"
    r"|AWS_ENDPOINT_URL\w*|AWS_EC2_METADATA_DISABLED|PG(HOST|PORT|DATABASE|USER|SSLROOTCERT)"
    r"|HOPAAS_\w+|" + "|".join(_PROXIES)
)
"""Variables that a process needs to run where this one does, none of them secret. See docs/adr/0043."""


def is_secret(name: str, value: str) -> bool:
    """Whether this variable is a credential, by its name, or because its value holds a token or, like a proxy's, a
    login.
    """
    if _SECRET_IN_VALUE.search(value) or (name in _PROXIES and "@" in value):  # which may have no scheme
        return True
    points = _POINTS.search(name) is not None or (value.startswith("/") and os.path.isfile(value))  # noqa: PTH113
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)  # githubToken
    return name in _SECRETS or (not points and _LOOKS_SECRET.search(words) is not None)


def environment(*more: str, store: str | None = None, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for a process of ours, or a batch system's command, with only the variables that are named here.

    Args:
        more: variables that the caller or the user names; these may be secrets.
        store: a store that the process opens itself. The credentials for it, and the proxy's login, are included.
        env: the environment.

    """
    scheme = "" if store is None else store.partition("://")[0]
    logins = _AWS if scheme == "s3" else _POSTGRES if scheme.startswith(("postgresql", "https")) else ()
    named = {*more, *logins, *(_PROXIES if store is not None else ())}
    return {
        name: value
        for name, value in env.items()
        if name in named or (_NAMED.fullmatch(name) and (not is_secret(name, value) or name == "SLURM_JWT"))
    }


def without_credentials(
    passed: Iterable[str] = (), env: Mapping[str, str] = os.environ
) -> tuple[dict[str, str], list[str]]:
    """This environment for the user's own command, and the names of the credentials that were left out."""
    left = sorted(name for name, value in env.items() if is_secret(name, value) and name not in set(passed))
    return {name: value for name, value in env.items() if name not in left}, left


# --- the gate --------------------------------------------------------------------------------------------------------


class _Joined(NamedTuple):
    name: str
    servers: frozenset[str]
    token_file: str
    authority: str
    """The file of its certificate authority, if the invitation contained one."""

    @property
    def words(self) -> str:
        return f"the study joined as {self.name}"


def _all_joined(env: Mapping[str, str]) -> list[_Joined]:
    chosen = env.get("HOPAAS_JOINED")
    names = {chosen} if chosen else set()
    with contextlib.suppress(ConfigurationError):  # no home directory, so nothing in it
        names.update(settings.joined_names(env))
    found = []
    for name in sorted(names):  # an unknown study is an error
        values = settings.joined(name, env)
        hosts = frozenset(_place(*one.rsplit(":", 1)) for one in values.get("token_host", "").split(",") if ":" in one)
        found.append(_Joined(name, hosts, values.get("token_file", ""), values.get("ca_file", "")))
    return found


def _joined_at(servers: Sequence[Server], env: Mapping[str, str]) -> _Joined | None:
    """The joined study at these hosts: that of HOPAAS_JOINED, or else one whose hosts the user has not also named.

    None if no study was joined there, or if the user has named all of these hosts.

    Raises:
        ConfigurationError: several joined studies are at these hosts, or one is at only some of them, so that no token
            is for all. Or the user has left the study there, or the certificate authority of a study that is not there
            would vouch for these hosts.

    """
    asked = {_place(host, port) for host, port in servers}
    known = _all_joined(env)
    exact = [one for one in known if asked & one.servers]
    # a variable such as PGPORT may lead to another port of its host than when it was joined
    there = exact or [one for one in known if _hosts(asked) & _hosts(one.servers)]
    chosen = [one for one in exact if one.name == env.get("HOPAAS_JOINED")]
    left = {host for host in _hosts(asked) & settings.left_hosts(env) if not _AMAZON.fullmatch(host)}
    if not (there or left) or (not chosen and all(_names(server) & _named_by_user(env) for server in servers)):
        check_authority(servers, env)
        return None
    if not there:
        raise ConfigurationError(
            f"{', '.join(sorted(left))} is known here only through a study that you have left, so it gets none of "
            "your credentials. Join that study again; or, if it is your own server, name it: --store or HOPAAS_STORE"
        )
    found, *others = chosen or there
    if others:
        names = ", ".join(one.name for one in there)
        raise ConfigurationError(f"several joined studies are at {servers[0][0]}; set HOPAAS_JOINED to one of: {names}")
    if not asked <= found.servers:
        raise ConfigurationError(
            f"{found.words} is not at {', '.join(sorted(asked - found.servers))}. If that is your own server, name it "
            "in a URL of its own (--store or HOPAAS_STORE); if not, check PGPORT"
        )
    return found


def is_joined(servers: Sequence[Server], env: Mapping[str, str] = os.environ) -> bool:
    """Whether these hosts get a joined study's token and not the user's own, or none because that is in doubt."""
    with contextlib.suppress(ConfigurationError):
        return bool(servers) and _joined_at(servers, env) is not None
    return True


def _place(host: str, port: str | int) -> str:
    return f"{host.lower().rstrip('.')}:{port}"


def _hosts(places: Iterable[str]) -> set[str]:
    return {place.rpartition(":")[0] for place in places}


def check_authority(servers: Sequence[Server], env: Mapping[str, str] = os.environ) -> None:
    """Raise ConfigurationError if only a joined study's certificate authority would vouch for these servers."""
    hosts = [host for host, port in servers if port]
    for one in _all_joined(env) if hosts and env.get("HOPAAS_CA_FILE") else ():
        if one.authority == env["HOPAAS_CA_FILE"]:
            raise ConfigurationError(
                f"the certificate authority of {one.words} would vouch for {hosts[0]}, too, so no credentials "
                "are sent there. Use that server from a process that uses no joined study"
            )


def _names(server: Server) -> set[str]:
    host, port = server[0].lower(), server[1]
    return {host, f"{host}:{port}", *([_AMAZONS] if _AMAZON.fullmatch(host) else [])}


def _gate(what: str, servers: Iterable[Server], *, by: str, env: Mapping[str, str]) -> None:
    """Check that a credential may be sent to these servers; `by` says who named them, and is empty for the user.

    Raises:
        ConfigurationError: the credential may not be sent to one of them.

    """
    allowed = _words(Settings(env=dict(env), warn=lambda _: None).own("token_host"))
    for host, port in servers:
        names = _names((host, port))
        if by and not (what != _TOKEN and _AMAZON.fullmatch(host.lower())) and not names & _named_by_user(env):
            raise ConfigurationError(
                f"{by} would send {what} to {host}:{port}, a host that you have not named. If you trust it, name "
                f"the store yourself (--store or HOPAAS_STORE), or set HOPAAS_TOKEN_HOST={host}"
            )
        if what == _TOKEN and not by and port and allowed and not names & allowed:
            raise ConfigurationError(
                f"the token is for {', '.join(sorted(allowed))} (token_host), and is not sent to {host}:{port}"
            )


def _words(text: str | None) -> set[str]:
    return set((text or "").lower().replace(",", " ").split())


def _named_by_user(env: Mapping[str, str]) -> set[str]:
    """Hosts, with or without a port, that the user named in the environment or in settings of their own."""
    found = Settings(env=dict(env), warn=lambda _: None)
    endpoints = [env.get(name, "") for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")]
    urls = [found.own("store") or "", found.own("artifacts") or "", *endpoints]
    return _words(found.own("token_host")) | _named | {place for url in urls for place in _places(url)}


def _places(url: str) -> Iterable[str]:
    """`host:port` of each server in one of the user's own URLs."""
    try:
        parts = urlsplit(url)
    except ValueError:  # reported when the store is opened
        return
    query = parse_qs(parts.query)
    if parts.scheme == "s3":
        endpoints = query.get("endpoint", [])
        for endpoint in endpoints:
            yield from _places(endpoint if "://" in endpoint else f"https://{endpoint}")
        if not endpoints:  # its server depends on the region
            yield _AMAZONS
        return
    default = _PORTS.get(parts.scheme)
    listed = [
        *parts.netloc.rpartition("@")[2].split(","),
        *(one for word in query.get("host", []) for one in word.split(",")),
    ]
    if default is None:
        return
    for host in list(filter(None, listed)) or [""]:
        has_port = host.rpartition(":")[2].isdigit() and host.count(":") == 1
        is_socket = not host or host.startswith(("/", "@"))
        yield (host if has_port and not is_socket else f"{host.strip('[]')}:{0 if is_socket else default}").lower()


def named(store: str) -> None:
    """Record a store that the user names to this process, by an option or in a call in the user's program."""
    _named.update(_places(store))


def check_named(store: str, servers: Sequence[Server], *, by: str, env: Mapping[str, str] = os.environ) -> None:
    """Refuse a store that only somebody else named; code that opens a URL written by others must call this first.

    A joined study's store is not refused, because it gets the token that came with its invitation.

    Args:
        store: the URL.
        servers: the URL's servers.
        by: who named them, as in a message: "the ticket".
        env: the environment.

    Raises:
        ConfigurationError: the user has not named one of the servers, or the URL sets how far to trust them.

    """
    if servers and _joined_at(servers, env) is None:
        _gate(_TOKEN, servers, by=by, env=env)
    check_says_where(store, by=by)


def check_says_where(store: str, *, by: str) -> None:
    """Refuse a URL that somebody else wrote if it says more than where its store is.

    Its options may name files of this machine, and libpq loads what some of them name as code.

    Raises:
        ConfigurationError: the URL has other options, which the message names.

    """
    # some URL parsers do not know fragments, and take a "?" for a part of the login
    options = parse_qs(store.partition("?")[2].replace("?", "&"), keep_blank_values=True)
    if about_trust := sorted(set(options) - WHERE):
        raise ConfigurationError(
            f"{by} names a store with {', '.join(about_trust)}: only you may set how far to trust a server. If you "
            "agree, name the store yourself: --store or HOPAAS_STORE"
        )


# --- stores with users -----------------------------------------------------------------------------------------------


def token(env: Mapping[str, str] = os.environ) -> Secret | None:
    """The user's own token, from `HOPAAS_TOKEN_FILE`, else from `HOPAAS_TOKEN`, else None; not yet bound to a host.

    The file is read at every call, so the token may be renewed.

    Raises:
        ConfigurationError: the file cannot be read or is empty, or the token is not one line of text.
        StoreUnreachable: a file that this process has read before cannot be read at the moment.

    """
    return _secret("HOPAAS_TOKEN", "token", env)


def login(
    user: str | None, servers: Sequence[Server], env: Mapping[str, str] = os.environ
) -> tuple[str | None, Secret | None]:
    """(role, secret) to log in with at these servers, as this user if one is named; (user, None) if there is no token.

    A token without a name is the user's secret. The secret is None if the token belongs to another user.

    Raises:
        ConfigurationError: the token may not be sent to one of the servers, cannot be read, or belongs to another user
            of a joined study.

    """
    joined = _joined_at(servers, env)
    if joined is not None:
        secret = _read(joined.token_file, "token", "token_file") if joined.token_file else None
    else:
        secret = token(env)
        if secret is not None:
            _gate(_TOKEN, servers, by="", env=env)
    role, separator, password = secret.reveal().partition(":") if secret is not None else ("", "", "")
    if not separator:
        found = user, secret
    else:
        found = (role, Secret(password)) if user in (None, "", role, role.rpartition(".")[0]) else (user, None)
    if joined is not None and found[1] is None:
        raise ConfigurationError(f"{joined.words} has no token for {user or 'its server'}; ask for another invitation")
    return found


def certificate(servers: Sequence[Server], env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Options for libpq about the client certificate. A joined study's host gets none, even if it requests one."""
    return {"sslcert": f"{os.devnull}/none"} if is_joined(servers, env) else {}


def leave_token(secret: Secret, servers: Iterable[Server]) -> None:
    """Put a token into the environment, where this process and its children look for one.

    The token is sent to these servers only. Nothing changes if there is already a token.
    """
    if not any(os.environ.get(name) for name in ("HOPAAS_TOKEN", "HOPAAS_TOKEN_FILE")):
        os.environ["HOPAAS_TOKEN"] = secret.reveal()
        os.environ.setdefault("HOPAAS_TOKEN_HOST", ",".join(f"{host}:{port}" for host, port in servers))


def seal(store: str, servers: Sequence[Server], env: Mapping[str, str] = os.environ) -> str:
    """A seal of a store's URL that only this user can make, on this or another machine.

    Empty without a token, and for a joined study's store, to which that token is not sent. Raises like `login`.
    """
    secret = token(env) if store.startswith(("postgresql", "https:")) else None
    if secret is None or len(secret.reveal()) < _UNGUESSABLE or _joined_at(servers, env) is not None:
        return ""
    return hmac.digest(secret.reveal().encode(), store.encode(), "sha256").hex()


def _secret(name: str, what: str, env: Mapping[str, str]) -> Secret | None:
    path = env.get(f"{name}_FILE")
    found = _read(path, what, f"{name}_FILE") if path else Secret(env.get(name, "").strip())
    if not found.reveal().isprintable():  # an error of the library that sends it could show it
        raise ConfigurationError(f"the {what} in {name}{'_FILE' * bool(path)} is not one line of text")
    return found if found.reveal() else None


_were_read: Final[set[str]] = set()
"""Secret files that this process has read."""


def _read(path: str, what: str, named: str) -> Secret:
    """The secret in a file that a variable or setting names. If it is a token, it may be renewed at any time.

    Raises:
        ConfigurationError: the file cannot be read, or is empty.
        StoreUnreachable: the file cannot be read at the moment. If this process has read it before, the file is being
            replaced, or is on a file system that is away.

    """
    kind = StoreUnreachable if path in _were_read else ConfigurationError
    with explained(f"{named}={path}: the file cannot be read", kind=kind), waits_for(f"{named}={path}"):
        text = read_named(Path(path)).strip()
    if not text:
        raise kind(f"{named}={path}: the file is empty; put the {what} into it")
    _were_read.add(path)
    return Secret(text)


# --- buckets ---------------------------------------------------------------------------------------------------------


AccessKey = tuple[str, str, str | None]
"""A key's id, its secret, and the token of its session if it has one."""


def may_sign(servers: Sequence[Server], env: Mapping[str, str] = os.environ, *, what: str = _KEYS) -> None:
    """Check that this user's keys may sign requests to these servers of a bucket.

    Raises:
        ConfigurationError: only a joined study names one of the servers, or vouches for it.

    """
    joined = _joined_at(servers, env)
    if joined is not None:
        _gate(what, servers, by=joined.words, env=env)


def access_key(servers: Sequence[Server], env: Mapping[str, str] = os.environ) -> AccessKey | None:
    """The key in AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN; None if there is none.

    Raises:
        ConfigurationError: only one of the first two is set; or as in `may_sign`.

    """
    key, secret = env.get("AWS_ACCESS_KEY_ID"), env.get("AWS_SECRET_ACCESS_KEY")
    if not key and not secret:
        return None
    if not key or not secret:
        missing = "AWS_SECRET_ACCESS_KEY" if key else "AWS_ACCESS_KEY_ID"
        raise ConfigurationError(f"{missing} is not set, but its counterpart is; set both")
    may_sign(servers, env)
    return key, secret, env.get("AWS_SESSION_TOKEN") or None


def profile_key(servers: Sequence[Server], env: Mapping[str, str] = os.environ) -> AccessKey | None:
    """The key in a section of ~/.aws/credentials, or of ~/.aws/config; None if there is none.

    AWS_PROFILE names the section, and other variables of AWS name other files.

    Raises:
        ConfigurationError: a file cannot be read, or has no key for AWS_PROFILE; or as in `may_sign`.

    """
    wanted = env.get("AWS_PROFILE") or env.get("AWS_DEFAULT_PROFILE") or "default"
    home = Path(os.devnull)
    with contextlib.suppress(RuntimeError):
        home = Path(env.get("HOME") or Path.home()) / ".aws"
    first = Path(env.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials")
    second = Path(env.get("AWS_CONFIG_FILE") or home / "config")
    for path, section in ((first, wanted), (second, wanted if wanted == "default" else f"profile {wanted}")):
        parser = configparser.RawConfigParser()
        try:
            with waits_for(str(path)):
                parser.read_string("" if str(path) == os.devnull else read_named(path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, UnicodeDecodeError, configparser.Error) as error:  # a message of the last may show a key
            why = f": {error.strerror or error}" if isinstance(error, OSError) else ""
            raise ConfigurationError(f"{path} cannot be read as a file of AWS profiles{why}") from None
        names = ("access_key_id", "secret_access_key", "session_token")
        key, secret, session = (parser.get(section, f"aws_{name}", fallback="") for name in names)
        if key and secret:
            may_sign(servers, env)
            return key, secret, session or None
    if env.get("AWS_PROFILE"):
        raise ConfigurationError(f"AWS_PROFILE={wanted}: no keys in {first} under [{wanted}]")
    return None


def identity(servers: Sequence[Server], env: Mapping[str, str] = os.environ) -> Secret | None:
    """The token in AWS_WEB_IDENTITY_TOKEN_FILE, for this STS; None if that is not set. Raises like `may_sign`."""
    path = env.get("AWS_WEB_IDENTITY_TOKEN_FILE")
    if not path:
        return None
    may_sign(servers, env, what=_IDENTITY)
    return _read(path, "token", "AWS_WEB_IDENTITY_TOKEN_FILE")


def container(env: Mapping[str, str] = os.environ) -> tuple[str, Secret] | None:
    """The URL of the container platform's service that provides keys, and the authorization that it requires.

    The environment names the host, in AWS_CONTAINER_CREDENTIALS_FULL_URI or …_RELATIVE_URI. None if neither is set.
    """
    relative = env.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
    url = f"http://169.254.170.2{relative}" if relative else env.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
    if not url:
        return None
    path = env.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
    given = Secret(env.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", ""))
    return url, _read(path, "token", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") if path else given


# --- webhooks, trackers, the monitor ---------------------------------------------------------------------------------


def webhook_url(env: Mapping[str, str] = os.environ) -> Secret | None:
    """The URL for alerts, from `HOPAAS_WEBHOOK_FILE`, else from `HOPAAS_WEBHOOK`, else None; raises like `token`."""
    found = _secret("HOPAAS_WEBHOOK", "URL", env)
    if found is not None:
        try:
            host = urlsplit(found.reveal()).hostname
        except ValueError:  # its message may show the URL
            raise ConfigurationError("HOPAAS_WEBHOOK or HOPAAS_WEBHOOK_FILE has no URL that can be parsed") from None
        check_authority([(host or "the webhook", 443)], env)
    return found


def check_wandb(file: Path) -> None:
    """Let W&B's library send its key to its default server, but not where this file of the directory redirects it.

    Raises:
        ConfigurationError: the file sets more than an entity, a project and a mode; it may have come with
            somebody else's repository.

    """
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(read_own(file, link=False))
        said = {key for section in parser.values() for key in section} - _WANDB_NAMES
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError, configparser.Error):
        said = {"something that cannot be read, or may be somebody else's"}
    if said:
        raise ConfigurationError(
            f"{file} came with this directory, and could send your key for W&B elsewhere through "
            f"{', '.join(sorted(said))}. Remove that from it, and set W&B's variables instead, such as WANDB_BASE_URL"
        )


def has_netrc_login(url: str, env: Mapping[str, str] = os.environ) -> bool:
    """Whether the user's netrc has a login for this server; the tracker's own library sends it."""
    with contextlib.suppress(OSError, RuntimeError, ValueError, netrc.NetrcParseError):  # a ValueError: it is not text
        file = Path(env.get("NETRC") or "~/.netrc").expanduser()
        read_named(file)  # `netrc` would wait for a pipe
        return netrc.netrc(str(file)).authenticators(urlsplit(url).hostname or "") is not None
    return False


_OF_THE_MONITOR: Final = {
    "metrics": ("HOPAAS_METRICS_TOKEN_FILE", "token"),
    "dashboard": ("HOPAAS_DASHBOARD_KEY_FILE", "key"),
    "sign-in": ("HOPAAS_OIDC_FILE", "provider's settings"),
}


def of_monitor(part: str, env: Mapping[str, str] = os.environ) -> Secret | None:
    """The contents of the file for this part of the monitor (see `_OF_THE_MONITOR`); raises like `token`.

    None if its variable is not set. There are three parts: the token that a metrics scraper must present, the key that
    a browser must present, and the settings for the sign-in provider, with the monitor's secret.
    """
    name, what = _OF_THE_MONITOR[part]
    path = env.get(name)
    return _read(path, what, name) if path else None
