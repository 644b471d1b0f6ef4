"""Nothing that travels through a store is unpickled."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
from pathlib import Path
from typing import Any

import msgspec
import optuna
import pytest

import hopaas_p2p
from hopaas_p2p import Float
from hopaas_p2p.errors import ConfigurationError, StoreUnreachable
from hopaas_p2p.storage.optuna_internals import pickle_prefixes, unpickles
from hopaas_p2p.study.ranks import ranks

CmaEsSampler = optuna.samplers.CmaEsSampler
cmaes = pytest.importorskip("cmaes")

VARIANTS = {
    "full": {},
    "separable": {"use_separable_cma": True},
    "with margin": {"with_margin": True},
    "adaptive": {"lr_adapt": True},
}


class Bomb:
    """Unpickling it makes a directory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


def sampler_of(options: dict[str, Any]) -> CmaEsSampler:
    return CmaEsSampler(seed=1, n_startup_trials=1, warn_independent_sampling=False, **options)


def objective(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_pickle_that_a_peer_wrote_does_not_run(tmp_path: Path, options: dict[str, Any]) -> None:
    sampler, proof = sampler_of(options), tmp_path / "it ran"
    trusting = hopaas_p2p.open_storage(str(tmp_path / "store"), allow_pickles=True)
    study = optuna.create_study(storage=trusting, study_name="s")
    for _ in range(5):
        study.optimize(objective, n_trials=1)
    bomb = study.ask()
    objective(bomb)
    key = f"{sampler._attr_prefix}optimizer:0"
    trusting.set_trial_system_attr(bomb._trial_id, key, pickle.dumps(Bomb(proof)).hex())
    study.tell(bomb, 0.0)
    trusting.close()

    storage = hopaas_p2p.open_storage(str(tmp_path / "store"))
    with pytest.raises(ConfigurationError, match="allow_pickles=True"):
        optuna.load_study(study_name="s", storage=storage, sampler=sampler).optimize(objective, n_trials=20)

    assert not proof.exists()
    storage.close()


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_sampler_that_unpickles_is_refused_before_the_first_trial(tmp_path: Path, options: dict[str, Any]) -> None:
    wrapped = optuna.samplers.PartialFixedSampler({"x": 0.5}, sampler_of(options))
    for sampler in (sampler_of(options), wrapped):
        study = hopaas_p2p.open_study(str(tmp_path), "s", space={"x": Float(0, 1)}, sampler=sampler)
        with pytest.raises(ConfigurationError, match="allow_pickles=True"):
            study.ask()
        assert study.trials == []
        study.close()


def test_samplers_that_do_not_unpickle_are_not_refused() -> None:
    for name in ("TPESampler", "RandomSampler", "NSGAIISampler", "QMCSampler", "GPSampler", "BruteForceSampler"):
        assert not unpickles(getattr(optuna.samplers, name).__new__(getattr(optuna.samplers, name))), name


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_every_prefix_of_the_installed_optuna_is_known() -> None:
    used = {sampler_of(options)._attr_prefix for options in VARIANTS.values()}
    assert used == set(pickle_prefixes())


def test_a_folder_of_optuna_that_cannot_be_listed_hides_no_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    pickle_prefixes.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", fail)
        with pytest.raises(StoreUnreachable, match="Too many open files"):
            pickle_prefixes()
    assert "cma:" in pickle_prefixes()


@pytest.mark.parametrize("place", ["gone", "library.zip/optuna/samplers"])
def test_a_program_that_was_frozen_without_the_sources_of_optuna_opens_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "library.zip").touch()
    monkeypatch.setattr(optuna.samplers, "__file__", str(tmp_path / place / "__init__.pyc"))
    pickle_prefixes.cache_clear()
    try:
        with contextlib.closing(hopaas_p2p.open_study(tmp_path / "store", "s")) as study:
            assert study.ask().number == 0
    finally:
        pickle_prefixes.cache_clear()


def test_optuna_unpickles_where_we_think_it_does() -> None:
    """A new place has to be looked at: whether a storage or an attribute of ours can reach it."""
    package = Path(optuna.__file__).parent
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any(word in path.read_text(encoding="utf-8") for word in ("pickle.load", "Unpickler", "cloudpickle", "dill"))
    }
    assert found == {"samplers/_cmaes.py", "storages/journal/_storage.py", "testing/pytest_storages.py"}


def test_a_pickle_in_the_store_of_torchruns_agent_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store has no password: whoever reaches its port may write there."""
    distributed, proof = pytest.importorskip("torch.distributed"), tmp_path / "it ran"
    agent = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(agent.port),
        "WORLD_SIZE": "2",
        "RANK": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("hopaas_p2p.study.ranks._known", [])
    stranger = distributed.PrefixStore("hopaas/0", distributed.TCPStore("127.0.0.1", agent.port, is_master=False))
    stranger.set("0", msgspec.msgpack.encode(("params", {"x": 0.5})))
    stranger.set("1", pickle.dumps(Bomb(proof)))
    among = ranks()
    assert among.broadcast("params", None) == {"x": 0.5}
    with pytest.raises(msgspec.MsgspecError):
        among.broadcast("params", None)
    assert not proof.exists()
