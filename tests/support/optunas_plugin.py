"""A pytest plugin for Optuna's own tests: they get our storage wherever they make one and, by `OURS`, our Study."""

from __future__ import annotations

import functools
import itertools
import os
import sys
import types
from pathlib import Path
from typing import Any

import optuna

import hopaas_p2p
from hopaas_p2p.storage import Storage

sys.modules.setdefault("fakeredis", types.ModuleType("fakeredis"))  # for a storage that is not made here

from optuna.testing import storages  # noqa: E402

_numbers = itertools.count()
_create, _load = optuna.create_study, optuna.load_study


def _storage(_supplier: object = None) -> Storage:
    return hopaas_p2p.open_storage(str(Path(os.environ["STORES"], f"{os.getpid()}-{next(_numbers)}")))


def _supply(supplier: Any) -> Storage:
    supplier.storage = _storage()
    return supplier.storage


def _ours(study: optuna.Study) -> optuna.Study:
    opened = functools.partial(hopaas_p2p.open_study, study._storage, study.study_name, create=False)
    return opened(sampler=study.sampler, pruner=study.pruner) if isinstance(study._storage, Storage) else study


def _create_ours(**given: Any) -> optuna.Study:
    return _ours(_create(**{**given, "storage": given.get("storage") or _storage()}))


def _load_ours(**given: Any) -> optuna.Study:
    return _ours(_load(**given))


storages.STORAGE_MODES[:] = ["inmemory"]
storages.STORAGE_MODES_HEARTBEAT.clear()
storages.StorageSupplier.__enter__ = _supply  # type: ignore[method-assign]
storages.StorageSupplier.__exit__ = lambda supplier, *_: supplier.storage.close()  # type: ignore[method-assign,union-attr]
if os.environ["OURS"] == "study":
    optuna.create_study = optuna.study.create_study = _create_ours  # type: ignore[assignment]
    optuna.load_study = optuna.study.load_study = _load_ours  # type: ignore[assignment]
