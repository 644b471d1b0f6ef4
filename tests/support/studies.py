"""Studies of tests that are opened with options of several kinds."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Final

import hopaas_p2p
from hopaas_p2p.storage import Storage

_STORAGE: Final = (
    "linger",
    "patience",
    "store_wait",
    "allow_pickles",
    "acts_for",
    "peer_ttl",
    "on_behalf_of",
    "operator",
)


def opened_study(store: str | os.PathLike[str] | Storage, name: str, **options: Any) -> hopaas_p2p.Study:
    """`open_study`, with the options of its policy and of its storage among its own."""
    policy = {key: options.pop(key) for key in hopaas_p2p.StudyPolicy._fields if key in options}
    storage = {key: options.pop(key) for key in _STORAGE if key in options}
    if storage and not isinstance(store, Storage):
        store = hopaas_p2p.open_storage(store, create=options.get("create", True), **storage)
    return hopaas_p2p.open_study(store, name, policy=hopaas_p2p.StudyPolicy(**policy), **options)


def copy_store(store: Path, to: Path) -> None:
    """Copy a directory in which peers may be at work: their beats' drafts come and go meanwhile."""
    shutil.copytree(store, to, symlinks=True, ignore=shutil.ignore_patterns(".*"))


def remove_store(store: Path) -> None:
    """Remove a directory in which peers may be at work: a beat may come or go meanwhile."""
    while store.exists():
        shutil.rmtree(store, ignore_errors=True)
