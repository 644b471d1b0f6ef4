"""Optuna's storage on a peer; see `storage.storage`."""

from hopaas_p2p.storage.storage import Storage, open_storage

__all__ = ["Storage", "open_storage"]
