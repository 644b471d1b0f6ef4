"""Settings: which of option, variable, files and default wins, and what a file may not hold."""

from __future__ import annotations

import errno
import importlib.util
import os
from pathlib import Path

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.errors import ConfigurationError, StoreUnreachable
from hopaas_p2p.runtime import extras
from hopaas_p2p.runtime.credentials import token
from hopaas_p2p.runtime.extras import check_sampler
from hopaas_p2p.runtime.settings import SETTINGS, Secret, Settings, user_file, variable
from hopaas_p2p.search import registry
from tests.support.processes import cli


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path / "config")}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    place = tmp_path / "here"
    place.mkdir()
    return place


def write_own(env: dict[str, str], text: str) -> None:
    path = user_file(env)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_an_option_wins_over_a_variable_over_here_over_the_users_file_over_the_default(
    env: dict[str, str], here: Path
) -> None:
    def found(given: str | None = None) -> tuple[str | None, str]:
        return Settings(env=env, directory=here).find("patience", given)[:2]

    assert found() == ("20", "default")
    write_own(env, 'patience = "1"')
    assert found() == ("1", str(user_file(env)))
    (here / "hopaas.toml").write_text('patience = "2"')
    assert found() == ("2", "./hopaas.toml")
    env["HOPAAS_PATIENCE"] = "3"
    assert found() == ("3", "environment HOPAAS_PATIENCE")
    assert found("4") == ("4", "option --patience")


def test_an_empty_variable_says_nothing(env: dict[str, str], here: Path) -> None:
    env["HOPAAS_STORE"] = ""
    assert Settings(env=env, directory=here).find("store")[:2] == (None, "not set")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stor = 1", "did you mean 'store'"),
        ("zzz = 1", "the settings are: store, study"),
        ('token = "secret"', "set token_file to its path"),
        ('ticket = "hp1-x"', "Use HOPAAS_TICKET"),
        ("store = [1]", "give text or a number"),
        ("store = ", "cannot be read"),
        ("\0", "cannot be read"),
    ],
)
def test_a_file_that_holds_what_is_no_setting_is_named(env: dict[str, str], here: Path, text: str, said: str) -> None:
    (here / "hopaas.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"hopaas\.toml") as caught:
        Settings(env=env, directory=here).get("store")
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_sampler_that_needs_a_library_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = registry.build("qmc")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match="QMCSampler needs scipy: pip install scipy"):
        check_sampler(sampler)


@pytest.mark.parametrize("wrong", ["soon", "0", "-1", "nan"])
def test_seconds_are_positive(env: dict[str, str], here: Path, wrong: str) -> None:
    env["HOPAAS_PATIENCE"] = wrong
    with pytest.raises(ConfigurationError, match="environment HOPAAS_PATIENCE"):
        Settings(env=env, directory=here).seconds("patience")


def test_what_the_library_reads_from_the_environment_is_put_there(env: dict[str, str], here: Path) -> None:
    (here / "hopaas.toml").write_text('site = "moon"\nstore = "./x"')
    Settings(env=env, directory=here).publish()
    assert env["HOPAAS_SITE"] == "moon"
    assert "HOPAAS_STORE" not in env


def test_config_show_says_which_won_and_shows_no_secret(tmp_path: Path) -> None:
    (tmp_path / "hopaas.toml").write_text('study = "from-file"\nstore = "postgresql://me:sesame@db/x"\n')
    home = {"XDG_CONFIG_HOME": str(tmp_path), "HOPAAS_TOKEN": "sesame"}
    shown = cli("config", "show", cwd=tmp_path, HOPAAS_SITE="north", **home)
    lines = {line.split()[0]: line for line in shown.stdout.splitlines()}
    assert "./hopaas.toml" in lines["study"]
    assert "from-file" in lines["study"]
    assert "environment HOPAAS_SITE" in lines["site"]
    assert "default" in lines["patience"]
    assert "sesame" not in shown.stdout + shown.stderr
    assert "***" in lines["token"]
    assert "postgresql://me:***@db/x" in lines["store"]
    assert "./hopaas.toml, not trusted" in lines["store"]
    optioned = cli("config", "show", "-s", "./there", cwd=tmp_path, **home)
    assert "option --store" in optioned.stdout


def test_every_setting_has_its_variable() -> None:
    assert {variable(name) for name in SETTINGS} >= {"HOPAAS_STORE", "HOPAAS_STUDY", "HOPAAS_TOKEN_FILE"}


def test_a_secret_does_not_show_itself() -> None:
    secret = Secret("sesame")
    assert "sesame" not in f"{secret} {secret!r} {[secret]} {secret:}"
    assert secret.reveal() == "sesame"


def test_a_token_comes_from_its_file_first(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("from-file\n")
    found = token({"HOPAAS_TOKEN_FILE": str(path), "HOPAAS_TOKEN": "other"})
    assert found is not None
    assert found.reveal() == "from-file"
    empty = tmp_path / "empty"
    empty.write_text("")
    with pytest.raises(ConfigurationError, match="empty"):
        token({"HOPAAS_TOKEN_FILE": str(empty)})


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.EACCES])
def test_a_token_file_that_cannot_be_read_for_a_moment_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "token"
    path.write_text("sesame")
    env = {"HOPAAS_TOKEN_FILE": str(path)}

    def fail(*_: object, **__: object) -> str:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        with pytest.raises(ConfigurationError if code == errno.EACCES else StoreUnreachable, match=os.strerror(code)):
            token(env)
    assert token(env) == Secret("sesame")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        with pytest.raises(StoreUnreachable, match=os.strerror(code)):
            token(env)


@pytest.mark.parametrize("left", [None, ""])
def test_a_token_file_that_is_being_replaced_is_waited_for(tmp_path: Path, left: str | None) -> None:
    path = tmp_path / "token"
    env = {"HOPAAS_TOKEN_FILE": str(path)}
    with pytest.raises(ConfigurationError, match="No such file"):
        token(env)
    path.write_text("sesame")
    assert token(env) == Secret("sesame")
    path.unlink()
    if left is not None:
        path.write_text(left)
    with pytest.raises(StoreUnreachable, match=r"No such file|the file is empty"):
        token(env)
    path.write_text("another")
    assert token(env) == Secret("another")


def test_install_hints_name_packages_that_can_be_had_from_a_checkout_and_after_a_release() -> None:
    for extra in ("demo", "dashboard", "parquet", "mlflow", "wandb", "cmaes"):
        hint = extras.install(extra)
        assert hint.startswith("pip install '")
        assert "hopaas" not in hint
    assert "'streamlit[auth]>=" in extras.install("dashboard")


def test_a_sampler_whose_packages_are_missing_is_refused_before_a_trial_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    study = hopaas_p2p.open_study(
        tmp_path / "store", "s", space={"x": hopaas_p2p.Float(0, 1)}, sampler=optuna.samplers.GPSampler()
    )
    with pytest.raises(ConfigurationError, match="GPSampler needs scipy and torch: pip install scipy torch"):
        study.optimize(lambda trial: trial.params["x"], n_trials=1)
    assert study.trials == []
    study.close()
