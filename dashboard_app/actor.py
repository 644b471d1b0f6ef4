"""The hand that writes: one storage a store and a person, opened when that person first acts.

Each is a peer of its own, so the log tells whom the dashboard acted for, though all use the dashboard's own token.
"""

from __future__ import annotations

import threading
from typing import Final

from hopaas_p2p.core.catalog import Listing
from hopaas_p2p.errors import NoSuchStudy
from hopaas_p2p.storage import Storage, open_storage
from hopaas_p2p.study import Study

_PATIENCE: Final = 10.0  # seconds that a click may wait for the store
_storages: Final[dict[tuple[str, str], Storage]] = {}
_lock: Final = threading.Lock()


def storage_of(url: str, person: str = "") -> Storage:
    """The storage that this process writes to this store by, for this person."""
    with _lock:
        if (url, person) not in _storages:
            _storages[url, person] = open_storage(url, create=False, patience=_PATIENCE, on_behalf_of=person)
        return _storages[url, person]


def study_of(url: str, listing: Listing, person: str = "") -> Study:
    """The study of this listing, by its id and never by its name: a namesake made later is another study.

    Raises:
        NoSuchStudy: it was deleted meanwhile.

    """
    storage = storage_of(url, person)
    try:
        name = storage.get_study_name_from_id(listing.study_id)
    except KeyError:
        raise NoSuchStudy(f"the study {listing.name!r} was deleted meanwhile") from None
    return Study(storage, listing.study_id, name)


def close_all() -> None:
    """Send what is queued and let go of the stores."""
    with _lock:
        for storage in _storages.values():
            storage.close()
        _storages.clear()
