"""Settings and tickets of strangers: they take no token along, and no trust."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hopaas_p2p import spool
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.hopaas import Client
from hopaas_p2p.open import open_store
from hopaas_p2p.ports.ticket import Ticket, carry, ending, ticket_of
from hopaas_p2p.remote.relay import read_password
from hopaas_p2p.runtime import credentials, ownership
from hopaas_p2p.runtime.settings import Settings, trust, user_file
from hopaas_p2p.stores.postgres.store import PostgresStore
from tests.support.postgres_people import Place
from tests.support.processes import cli, until
from tests.support.strangers import Stranger, stranger

TOKEN = "ann.0123abcd:" + "k" * 43


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path / "config")}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    place = tmp_path / "here"
    place.mkdir()
    place.chmod(0o755)
    return place


@pytest.fixture
def evil(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> object:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOPAAS_TOKEN", TOKEN)
    for name in ("HOPAAS_TOKEN_FILE", "HOPAAS_TOKEN_HOST", "HOPAAS_STORE", "PGPASSWORD"):
        monkeypatch.delenv(name, raising=False)
    with stranger() as listening:
        yield listening


def _url(evil: Stranger) -> str:
    return f"postgresql://127.0.0.1:{evil.port}/d"


# --- whose file is it? -------------------------------------------------------------------------------------------


def _found(env: dict[str, str], here: Path) -> tuple[str | None, list[str]]:
    said: list[str] = []
    return Settings(env=env, directory=here, warn=said.append).get("store"), said


def test_a_file_of_ones_own_counts(env: dict[str, str], here: Path) -> None:
    (here / "hopaas.toml").write_text('store = "./mine"')
    (here / "hopaas.toml").chmod(0o644)
    assert _found(env, here) == ("./mine", [])


def test_a_file_of_somebody_elses_does_not_count(
    env: dict[str, str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "hopaas.toml").write_text('store = "./theirs"')
    monkeypatch.setattr(ownership.os, "geteuid", lambda: os.getuid() + 1)
    store, (said,) = _found(env, here)
    assert store is None
    assert "./hopaas.toml is ignored" in said
    assert "belongs to" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("given", ["file", "directory"])
def test_what_root_gave_away_does_not_count_for_root(env: dict[str, str], here: Path, given: str) -> None:
    (here / "hopaas.toml").write_text('store = "./theirs"')
    os.chown(here if given == "directory" else here / "hopaas.toml", 12345, 12345)
    assert _found(env, here)[0] is None


@pytest.mark.parametrize("mode", [0o622, 0o602, 0o666])
@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_file_that_others_may_write_does_not_count(env: dict[str, str], here: Path, what: str, mode: int) -> None:
    (here / "hopaas.toml").write_text('store = "./theirs"')
    (here if what == "directory" else here / "hopaas.toml").chmod(mode | (0o100 if what == "directory" else 0))
    if os.geteuid() == 0 and mode == 0o622 and ownership._is_private(0, 0):
        os.chown(here, 0, 12345)
        os.chown(here / "hopaas.toml", 0, 12345)
    store, said = _found(env, here)
    assert store is None
    assert "others may write" in said[0]


def test_a_pipe_or_a_directory_in_its_place_hangs_nobody(env: dict[str, str], here: Path) -> None:
    os.mkfifo(here / "hopaas.toml")
    assert _found(env, here) == (None, [f"./hopaas.toml is ignored: {here / 'hopaas.toml'} is not a regular file"])
    (here / "hopaas.toml").unlink()
    (here / "hopaas.toml").mkdir()
    assert _found(env, here)[0] is None


# --- what it may say before it is trusted ------------------------------------------------------------------------

HOSTS_PATHS_FILES = [
    ("store", "https://evil.example.org/d"),
    ("store", "s3://b-1?endpoint=https://evil.example.org"),
    ("store", "file:///tmp/there"),
    ("store", "/tmp/there"),
    ("store", "../there"),
    ("store", "~/there"),
    ("store", "link"),
    ("artifacts", "https://evil.example.org/d"),
    ("artifacts", "link/deeper"),
    ("token_file", "mine.token"),
    ("webhook_file", "mine.webhook"),
    ("ca_file", "evil.pem"),
    ("token_host", "evil.example.org"),
    ("proxy_file", "evil.proxy"),
    ("via", "folder"),
]


@pytest.mark.parametrize(("name", "value"), HOSTS_PATHS_FILES)
def test_a_file_that_came_with_a_directory_names_no_host_no_way_out_and_no_secret(
    env: dict[str, str], here: Path, tmp_path: Path, name: str, value: str
) -> None:
    (here / "link").symlink_to(tmp_path)
    (here / "hopaas.toml").write_text(f'{name} = "{value}"')
    with pytest.raises(ConfigurationError, match=f"its {name} has no effect until .* hopaas-p2p config trust"):
        Settings(env=env, directory=here).find(name)
    trust(here / "hopaas.toml", env)
    assert Settings(env=env, directory=here).get(name) == value


def test_it_chooses_names_numbers_and_a_store_in_its_own_folder(env: dict[str, str], here: Path) -> None:
    lines = {"study": "s", "patience": "9", "site": "north", "store": "./mine"}
    (here / "hopaas.toml").write_text("".join(f'{name} = "{value}"\n' for name, value in lines.items()))
    assert {name: Settings(env=env, directory=here).get(name) for name in lines} == lines


def test_what_the_user_says_counts_whatever_such_a_file_says(env: dict[str, str], here: Path) -> None:
    (here / "hopaas.toml").write_text('store = "postgresql://evil.example.org/d"')
    assert Settings(env=env, directory=here).get("store", "./mine") == "./mine"
    assert Settings(env={**env, "HOPAAS_STORE": "./own"}, directory=here).get("store") == "./own"


def test_trust_is_for_one_place_and_one_content(env: dict[str, str], here: Path, tmp_path: Path) -> None:
    file = here / "hopaas.toml"
    file.write_text('store = "postgresql://db.example.org/d"')
    trust(file, env)
    assert _found(env, here)[0] == "postgresql://db.example.org/d"
    other = tmp_path / "other"
    other.mkdir(mode=0o755)
    (other / "hopaas.toml").write_bytes(file.read_bytes())
    with pytest.raises(ConfigurationError, match="config trust"):
        _found(env, other)
    file.write_text('store = "postgresql://evil.example.org/d"')
    with pytest.raises(ConfigurationError, match="config trust"):
        _found(env, here)


def test_a_planted_link_to_a_trusted_file_of_the_users_does_not_count(
    env: dict[str, str], here: Path, tmp_path: Path
) -> None:
    (here / "hopaas.toml").write_text('store = "postgresql://db.example.org/d"')
    trust(here / "hopaas.toml", env)
    for place in (tmp_path / "clone", tmp_path / "shared"):
        place.mkdir(mode=0o755)
        (place / "hopaas.toml").symlink_to(here / "hopaas.toml")
        if place.name == "shared":
            place.chmod(0o1777)
        store, (said,) = _found(env, place)
        assert store is None
        assert "is a link" in said
        with pytest.raises(ConfigurationError, match="is a link"):
            trust(place / "hopaas.toml", env)


def test_a_file_that_somebody_else_may_have_written_cannot_be_trusted(env: dict[str, str], here: Path) -> None:
    (here / "hopaas.toml").write_text('store = "postgresql://db.example.org/d"')
    (here / "hopaas.toml").chmod(0o666)
    with pytest.raises(ConfigurationError, match="others may write"):
        trust(here / "hopaas.toml", env)


def test_nobody_else_can_have_kept_the_trust(env: dict[str, str], here: Path) -> None:
    (here / "hopaas.toml").write_text('store = "postgresql://db.example.org/d"')
    trust(here / "hopaas.toml", env)
    (user_file(env).parent / "trusted").chmod(0o777)
    with pytest.raises(ConfigurationError, match="config trust"):
        _found(env, here)


def test_on_a_node_without_a_home_there_is_one_clear_line_and_another_place(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    (here / "hopaas.toml").write_text('study = "s"\nstore = "postgresql://db.example.org/d"')
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert Settings(env={}, directory=here).get("study") == "s"
    with pytest.raises(ConfigurationError, match="set XDG_CONFIG_HOME to a directory of yours"):
        trust(here / "hopaas.toml", {})
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="set XDG_CONFIG_HOME to a directory of yours"):
        trust(here / "hopaas.toml", {"XDG_CONFIG_HOME": str(tmp_path / "file")})
    elsewhere = {"XDG_CONFIG_HOME": str(tmp_path / "scratch")}
    trust(here / "hopaas.toml", elsewhere)
    assert Settings(env=elsewhere, directory=here).get("store") == "postgresql://db.example.org/d"


@pytest.mark.parametrize("letter", ["\n", "\r", "\x1b", "\x85", "\u2028"])
@pytest.mark.parametrize("name", ["site", "study", "artifacts"])
def test_a_value_that_is_not_one_line_is_refused_where_it_is_read(
    env: dict[str, str], here: Path, name: str, letter: str
) -> None:
    text = f"a{letter}b"
    for more, given in ((env, text), ({**env, f"HOPAAS_{name.upper()}": text}, None)):
        with pytest.raises(ConfigurationError, match="not one line"):
            Settings(env=more, directory=here).find(name, given)


@pytest.mark.parametrize(
    "url", ["postgresql://u:ses\name@h/d", "postgresql://u@h/d?password=sesa\rme", "s3://k:sesame\n@b"]
)
def test_a_password_is_not_shown_where_its_url_is_refused(env: dict[str, str], here: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match="not one line") as refused:
        Settings(env={**env, "HOPAAS_STORE": url}, directory=here).find("store")
    assert not any(piece in str(refused.value) for piece in ("ses", "ame", "sesame"))


# --- where does the token go? ------------------------------------------------------------------------------------


def test_a_stranger_that_asks_for_the_password_is_told_nothing(evil: Stranger) -> None:
    store = PostgresStore(_url(evil))
    with pytest.raises(ConfigurationError, match="asks for the secret without SCRAM"):
        store.catalog().exchange(None, 0)
    store.close()
    assert (evil.visits, evil.heard) == (1, b"")


def test_what_libpq_knows_by_itself_is_not_told_either(
    evil: Stranger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pgpass").write_text("*:*:*:*:sesame\n")
    (tmp_path / "pgpass").chmod(0o600)
    monkeypatch.delenv("HOPAAS_TOKEN")
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
    store = PostgresStore(f"postgresql://ann@127.0.0.1:{evil.port}/d")
    with pytest.raises(ConfigurationError, match="asks for the secret without SCRAM"):
        store.catalog().exchange(None, 0)
    store.close()
    assert evil.heard == b""


@pytest.mark.parametrize("secret", ["HOPAAS_TOKEN", "PGPASSWORD"])
@pytest.mark.parametrize("words", [["study", "list"], ["doctor"], ["trial", "ask", "--study", "s"]], ids=" ".join)
def test_a_clone_with_a_store_in_it_gets_no_token(evil: Stranger, here: Path, words: list[str], secret: str) -> None:
    (here / "hopaas.toml").write_text(f'store = "{_url(evil)}"')
    (here / "hopaas.toml").chmod(0o644)
    env = {"HOPAAS_TOKEN": "", secret: TOKEN}
    done = cli(*words, check=False, cwd=here, **env)
    assert done.returncode != 0
    assert "hopaas-p2p config trust" in done.stderr
    assert evil.visits == 0


@pytest.mark.parametrize("verb", ["put", "worker"])
def test_a_clone_with_a_place_for_artifacts_in_it_gets_no_token(evil: Stranger, here: Path, verb: str) -> None:
    (here / "hopaas.toml").write_text(f'store = "./mine"\nstudy = "s"\nartifacts = "{_url(evil)}"')
    done = cli("study", "create", "s", "--store", "mine", "--space", "x=float(0,1)", check=False, cwd=here)
    words = (
        ["trial", "artifact", "put", "hopaas.toml"] if verb == "put" else ["worker", "--max-trials", "1", "--", "false"]
    )
    done = cli(*words, check=False, cwd=here, HOPAAS_TOKEN=TOKEN)
    assert done.returncode == 78
    assert "its artifacts has no effect until" in done.stderr
    assert evil.visits == 0


def test_completing_a_word_in_a_clone_sends_nothing(evil: Stranger, here: Path) -> None:
    (here / "hopaas.toml").write_text(f'store = "{_url(evil)}"')
    env = {"_HOPAAS_P2P_COMPLETE": "bash_complete", "COMP_WORDS": "hopaas-p2p study show ", "COMP_CWORD": "3"}
    for more in ({"HOPAAS_TOKEN": TOKEN}, {}):
        done = cli(check=False, cwd=here, **env, **more)
        assert (done.stdout.strip(), evil.visits) == ("", 0)


def test_the_hopaas_client_sends_no_token_from_a_clone(
    evil: Stranger, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "hopaas.toml").write_text(f'store = "{_url(evil)}"')
    monkeypatch.chdir(here)
    for token in (None, "sesame"):
        with pytest.raises(Exception, match="config trust"):
            Client(token=token)
    assert evil.visits == 0


def test_a_host_that_the_user_names_is_asked(evil: Stranger, here: Path) -> None:
    """It is a stranger still, and hears no secret."""
    (here / "hopaas.toml").write_text(f'store = "{_url(evil)}"')
    for words, env in ((["--store", _url(evil)], {}), ([], {"HOPAAS_STORE": _url(evil)})):
        done = cli("study", "list", *words, check=False, cwd=here, HOPAAS_TOKEN=TOKEN, **env)
        assert "asks for the secret without SCRAM" in done.stderr
    trusted = cli("config", "trust", cwd=here)
    assert f"store = {_url(evil)}" in trusted.stderr
    done = cli("study", "list", check=False, cwd=here, HOPAAS_TOKEN=TOKEN)
    assert "asks for the secret without SCRAM" in done.stderr
    assert (evil.visits, evil.heard) == (3, b"")


def test_a_token_that_was_stored_for_a_host_goes_to_no_other(evil: Stranger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPAAS_TOKEN_HOST", "db.example.org")
    for url in (_url(evil), f"https://127.0.0.1:{evil.port}/d"):
        store = open_store(url)
        with pytest.raises(ConfigurationError, match="is not sent to 127"):
            store.catalog().exchange(None, 0)
        store.close()
    assert evil.visits == 0


def test_a_token_beside_the_store_in_one_file_goes_there(
    evil: Stranger, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOPAAS_TOKEN")
    (here / "hopaas.toml").write_text(f'store = "{_url(evil)}"\ntoken_file = "mine.token"')
    (here / "mine.token").write_text(TOKEN)
    trust(here / "hopaas.toml")
    assert "asks for the secret without SCRAM" in cli("study", "list", check=False, cwd=here).stderr
    again = cli("study", "list", check=False, cwd=here, HOPAAS_TOKEN_FILE="mine.token")  # as a command's child has it
    assert "asks for the secret without SCRAM" in again.stderr


# --- tickets -----------------------------------------------------------------------------------------------------


def test_a_ticket_of_a_stranger_takes_no_token_along(evil: Stranger) -> None:
    for seal in ("", "0" * 64):
        ticket = Ticket(_url(evil), "s", 0, "owner", 1, "uuid", seal)
        with pytest.raises(ConfigurationError, match="the ticket would send your token to"), carry(ticket):
            pass
    done = cli("trial", "tell", "1.0", "--ticket", str(ticket), check=False, HOPAAS_TOKEN=TOKEN)
    assert "the ticket would send your token to" in done.stderr
    assert evil.visits == 0


def test_what_a_stranger_was_to_be_told_is_not_kept_until_there_is_a_token(
    evil: Stranger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("HOPAAS_TOKEN")
    ticket = Ticket(_url(evil), "s", 0, "owner", 1, "uuid")
    end = ending(ticket, [0.5])
    with (
        pytest.raises(ConfigurationError, match="the ticket would send your token to"),
        carry(ticket, end=end, patience=0.1),
    ):
        pass
    assert not list(spool.waiting())


def test_a_ticket_made_with_the_token_needs_no_store(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOPAAS_STORE", raising=False)
    monkeypatch.setenv("HOPAAS_TOKEN", ":".join(place.token("ann")))
    import hopaas_p2p

    url = f"postgresql://127.0.0.1:{place.server.port}/store"
    study = hopaas_p2p.open_study(place.storage(url), "s", space={"x": hopaas_p2p.Float(0, 1)})
    ticket = ticket_of(study, study.ask().number)
    monkeypatch.setattr(credentials, "_named", set())  # as in another process
    with carry(Ticket.parse(str(ticket))) as trial:
        trial.do("tell", values=[0.5])
    until(lambda: [trial.value for trial in study.trials] == [0.5])
    monkeypatch.setenv("HOPAAS_TOKEN", ":".join(place.token("bob")))
    with pytest.raises(ConfigurationError, match="the ticket would send your token"), carry(ticket):
        pass


def test_the_seal_of_a_ticket_is_made_from_no_short_secret(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sees a ticket could try words until one gives the seal."""
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")
    monkeypatch.setenv("HOPAAS_TOKEN", "sesame")
    import hopaas_p2p

    study = hopaas_p2p.open_study(place.storage(place.admin), "s", space={"x": hopaas_p2p.Float(0, 1)})
    assert ticket_of(study, study.ask().number).seal == ""


# --- the relay's login -------------------------------------------------------------------------------------------


def test_a_login_file_that_others_may_write_is_refused(here: Path) -> None:
    file = here / "relay"
    file.write_text("http://relay:s3cret@h:1\n")
    file.chmod(0o600)
    assert read_password(file).reveal() == "s3cret"
    here.chmod(0o777)
    with pytest.raises(ConfigurationError, match="must be readable by you only: others may write"):
        read_password(file)


def test_a_login_file_of_a_stranger_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = here / "relay"
    file.write_text("http://relay:s3cret@h:1\n")
    file.chmod(stat.S_IRUSR | stat.S_IWUSR)
    monkeypatch.setattr(ownership.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigurationError, match="belongs to"):
        read_password(file)
    os.mkfifo(here / "pipe")
    with pytest.raises(ConfigurationError, match="regular file"):
        read_password(here / "pipe")
