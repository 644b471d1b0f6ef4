"""What somebody else, or an accident, has put in a place ends in one line that says so."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner

import hopaas_p2p
from hopaas_p2p.cli.join import _read
from hopaas_p2p.cli.local import _key
from hopaas_p2p.cli.main import cli
from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, PeerJoin, StudyControl, StudyRegistered, StudySet
from hopaas_p2p.errors import ConfigurationError, InvalidInput, StoreCorrupt, StoreUnreachable
from hopaas_p2p.net.proxies import parse_proxy
from hopaas_p2p.net.trust import authorities
from hopaas_p2p.open import open_store
from hopaas_p2p.ports.limits import time_left
from hopaas_p2p.remote.certificate import Certificate
from hopaas_p2p.remote.log import JsonFormatter
from hopaas_p2p.remote.relay import read_password
from hopaas_p2p.runtime import credentials
from hopaas_p2p.runtime.provenance import batch_job
from hopaas_p2p.runtime.settings import Settings, read_proxy
from hopaas_p2p.stores.base import Outgoing, append
from tests.support.processes import cli as cli_process

SPACE = {"x": hopaas_p2p.Float(0, 1)}
SECRET_FILES: dict[str, Callable[[Path], object]] = {
    "relay": read_password,
    "local": lambda path: _key(str(path)),
    "token": lambda path: credentials.token({"HOPAAS_TOKEN_FILE": str(path)}),
    "identity": lambda path: credentials.identity(
        [("127.0.0.1", 1)], {"AWS_WEB_IDENTITY_TOKEN_FILE": str(path), "HOPAAS_TOKEN_HOST": "127.0.0.1"}
    ),
    "profile": lambda path: credentials.profile_key([("127.0.0.1", 1)], {"AWS_SHARED_CREDENTIALS_FILE": str(path)}),
    "webhook": lambda path: credentials.webhook_url({"HOPAAS_WEBHOOK_FILE": str(path)}),
}


@pytest.mark.parametrize("name", SECRET_FILES)
@pytest.mark.parametrize("content", [b"\xff\xfe\x00s3cret", b"s3cret" * 300_000], ids=["not text", "endless"])
def test_a_file_of_a_secret_that_is_none_is_one_line_and_not_shown(tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ConfigurationError) as refused:
        SECRET_FILES[name](file)
    assert "s3cret" not in str(refused.value)
    assert str(file) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert "HOPAAS_WEBHOOK" in str(refused.value) or str(file) in str(refused.value)


def test_a_login_file_without_an_address_is_one_line_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "login"
    file.touch(mode=0o600)
    for content in ("http://relay:s3cret@[", "http://ann:s3cret@127.0.0.1:1", "http://relay@127.0.0.1:1", ""):
        file.write_text(content)
        with pytest.raises(ConfigurationError, match=f"^{file} does not hold the address of a relay"):
            read_password(file)


def test_a_proxy_with_a_line_break_or_a_nul_in_it_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "proxy"
    file.touch(mode=0o600)
    for content in ("http://ann:s3cret@h\0:1", "http://ann:s3cret@h:1\nhttp://b:1", "http://ann:s3cret@h:1\x01"):
        file.write_text(content)
        with pytest.raises(ConfigurationError, match=r"this is not one line of text$") as refused:
            read_proxy(file)
        assert "s3cret" not in str(refused.value)
        with pytest.raises(ConfigurationError, match="HTTPS_PROXY cannot be parsed") as refused:
            parse_proxy(content)
        assert "s3cret" not in str(refused.value)


def test_a_key_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"the key file .*/file/key cannot be used: Not a directory"):
        _key(str(tmp_path / "file" / "key"))


@pytest.mark.parametrize("name", SECRET_FILES)
@pytest.mark.parametrize("place", ["/dev/zero", "fifo", "folder"])
def test_what_is_no_file_in_the_place_of_a_secret_is_one_line_and_waits_for_nobody(
    tmp_path: Path, name: str, place: str
) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "folder").mkdir(mode=0o700)
    with pytest.raises(ConfigurationError, match="is not a regular file") as refused:
        SECRET_FILES[name](tmp_path / place)
    assert str(tmp_path / place) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_secret_in_a_pipe_is_refused_with_the_cure(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match=r"but a pipe\. Put the text into a file of mode 600, and name that"):
        credentials.token({"HOPAAS_TOKEN_FILE": str(tmp_path / "pipe")})


def test_no_file_of_profiles_is_customarily_the_null_device(tmp_path: Path) -> None:
    null = dict.fromkeys(("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"), os.devnull)
    assert credentials.profile_key([("127.0.0.1", 1)], {**null, "HOME": str(tmp_path)}) is None


def test_a_pipe_where_others_keep_logins_or_a_job_is_described_is_passed_over(tmp_path: Path) -> None:
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    assert not credentials.has_netrc_login("https://api.wandb.ai", {"NETRC": pipe})
    assert batch_job({"_CONDOR_JOB_AD": pipe}) == {}
    assert time_left({"_CONDOR_JOB_AD": pipe}) is None
    assert time_left({"_CONDOR_JOB_AD": "/dev/zero"}) is None
    ad = tmp_path / "ad"
    ad.write_text(f"MaxRuntime = {'9' * 5000}\nClusterId = 1\n")
    assert time_left({"_CONDOR_JOB_AD": str(ad)}) is None


@pytest.mark.parametrize("place", ["/dev/zero", "fifo", "folder"])
def test_what_is_no_file_in_the_place_of_a_certificate_is_one_line(tmp_path: Path, place: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError, match=r"is not a regular file$"):
        Certificate(tmp_path / place, tmp_path / place)
    with pytest.raises(ConfigurationError, match=f"no file {tmp_path / place}"):
        authorities(str(tmp_path / place))
    with pytest.raises(InvalidInput, match="is not a regular file"):
        _read(str(tmp_path / place))


def test_a_file_of_profiles_is_not_read_without_an_end(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n" + "#\n" * 600_000)
    with pytest.raises(ConfigurationError, match=f"^{file} cannot be read as a file of AWS profiles"):
        credentials.profile_key([("127.0.0.1", 1)], {"AWS_SHARED_CREDENTIALS_FILE": str(file)})


@pytest.fixture
def undefined(tmp_path: Path) -> str:
    """A store with an honest study, and one that begins with something else than its definition."""
    url, uuid = str(tmp_path / "store"), "f" * 32
    hopaas_p2p.open_study(url, "honest", space=SPACE).close()
    store = open_store(url)
    opened = Commit("opener", 1, "opener", 0, (StudyRegistered(uuid, "evil"),))
    store.catalog().exchange(Outgoing("opener:1", codec.encode(opened)), 0)
    append(store.log(uuid), Outgoing("m:1", codec.encode(Commit("m", 1, "m", 0, (PeerJoin({}),)))), 0)
    store.close()
    return url


@pytest.mark.parametrize(
    "line",
    [
        "study show evil",
        "study create new --learn-from evil --space x=float(0,1)",
        "study set honest --learn-from evil",
        "study import evil --from {other}",
        "study import evil --from {table}",
    ],
)
def test_a_study_without_a_definition_is_named_whatever_reads_it(undefined: str, line: str, tmp_path: Path) -> None:
    other, table = f"sqlite:///{tmp_path}/other.db", tmp_path / "x.csv"
    optuna.create_study(storage=other, study_name="there").optimize(lambda trial: trial.suggest_float("x", 0, 1), 1)
    table.write_text("x,value\n0.5,1\n")
    words = line.format(other=other, table=table).split()
    result = CliRunner().invoke(cli, [*words, "--store", undefined])
    assert isinstance(result.exception, StoreCorrupt)


def test_optuna_hears_which_study_has_no_definition(undefined: str) -> None:
    storage = hopaas_p2p.open_storage(undefined)
    with pytest.raises(StoreCorrupt, match="evil"):
        optuna.load_study(study_name="evil", storage=storage)
    storage.close()


def test_the_audit_shows_a_second_commit_of_the_same_number_as_repeated(tmp_path: Path) -> None:
    url = str(tmp_path)
    study = hopaas_p2p.open_study(url, "s", space=SPACE)
    store, uuid = open_store(url), study.handle.uuid
    study.close()
    commits = [(StudyControl("paused"),), (StudyControl("running"), StudySet({"a": "1"})), (StudySet({"b": "1"}),)]
    since = 0
    for at, records in enumerate(commits):
        since = append(store.log(uuid), Outgoing(f"m:{at}", codec.encode(Commit("m", 1, "m", at, records))), since)[
            -1
        ].lsn
    store.close()
    result = CliRunner().invoke(
        cli, ["study", "show", "s", "--audit", "--json", "--store", url], catch_exceptions=False
    )
    kinds = [(one["kind"], one["refused"]) for one in json.loads(result.output)][-3:]
    assert kinds == [("study.control", None), ("repeated", "duplicate"), ("repeated", "duplicate")]


LONG = "k" * 7_000


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('study = "a\\nhopaas.toml is now trusted: site = x"', 0),
        (f"{LONG} = 1", 78),
        (f'study = "{LONG}"', 78),
        (f"study = [{'1,' * 7_000}]", 78),
        (f"[{LONG}]\n[{LONG}]", 78),
    ],
)
def test_settings_of_a_clone_begin_no_line_and_fill_no_screen(tmp_path: Path, text: str, code: int) -> None:
    file = tmp_path / "hopaas.toml"
    file.write_text(text)
    commands = [["config", "trust", str(file)]]
    commands += [["config", "show"], ["study", "list", "-s", "store"]] if code else []
    for words in commands:
        found = cli_process(*words, check=False, cwd=tmp_path, XDG_CONFIG_HOME=str(tmp_path / "own"))
        assert found.returncode == code
        said = (found.stdout + found.stderr).strip()
        assert len(said.splitlines()) == 1
        assert len(said) < 1000


def test_a_setting_that_a_clone_gives_a_wrong_value_is_shown_in_one_line(tmp_path: Path) -> None:
    lines = "a\\n" * 1000
    for line in (f'study = "{lines}"', f'patience = "{"a" * 4000}"'):
        (tmp_path / "hopaas.toml").write_text(line)
        found = Settings(directory=tmp_path, env={"XDG_CONFIG_HOME": str(tmp_path)})
        with pytest.raises(ConfigurationError) as refused:
            found.get("study") if line.startswith("study") else found.seconds("patience")
        assert len(str(refused.value)) < 400


HOSTILE = "\x1b]0;PWN\x07\x1b[2J\u202eevil\u2066\x9b31m\u200b\ud800"


def test_what_a_server_says_moves_no_terminal_and_looks_like_no_other_entry_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever log handler, or traceback of the user's program, it ends in."""
    error = StoreUnreachable(f"{HOSTILE}\r\n2026-01-01 all is well\u2028, really")
    logging.getLogger("hopaas_p2p").warning("still trying, %s: %s, %s", "for 20 s", error, OSError(HOSTILE))
    (shown,) = caplog.text.splitlines()
    assert shown.isprintable()
    assert all(line.isprintable() for line in str(error).split("\n"))
    assert "still trying, for 20 s: \\u001b]0;PWN\\u0007" in shown
    assert str(StoreUnreachable("Zoë's 研究 🎉\n\tis gone")) == "Zoë's 研究 🎉\n\tis gone"


def test_the_traceback_of_an_unexpected_error_looks_like_no_other_entry_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    try:
        raise ValueError(f"{HOSTILE}\r\n2026-01-01 all is well")
    except ValueError:
        logging.getLogger("hopaas_p2p").exception("a background job failed")
    entry, *traceback = caplog.text.splitlines()
    assert entry.endswith("a background job failed")
    assert len(traceback) > 3
    assert all(line.isprintable() and line.startswith("  ") for line in traceback)


def test_an_entry_of_a_servers_log_is_one_line_of_printable_text() -> None:
    entry = JsonFormatter().format(logging.makeLogRecord({"msg": "refused", "about": {"token": HOSTILE}}))
    assert entry.isprintable()
    assert json.loads(entry)["token"] == HOSTILE
