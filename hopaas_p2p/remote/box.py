"""A folder that carries requests and answers between peers and a server that have no other connection.

    box.json                 the store that is served here
    requests/{name}          a request, encoded by `protocol`; the caller creates it, the server removes it
    answers/{name}           its answer, which the caller removes
    files/{name}             the bytes of a file that belongs to a request or an answer
    beats/{server}           changes while a server runs and reaches the store

Each name is created once, as in `stores.directory.files`, so a box works on every file system that can hold a store. A
request stays until it is carried out, even after its sender has ended, unless the sender withdrew it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import secrets
import stat
import time
from pathlib import Path
from typing import Any, Final

from hopaas_p2p.core.names import valid_name
from hopaas_p2p.errors import (
    ConfigurationError,
    Denied,
    HopaasError,
    NoStore,
    StoreAway,
    StoreUnreachable,
    explained,
    waits_for,
)
from hopaas_p2p.remote import protocol
from hopaas_p2p.remote.protocol import LARGEST, StoreRequest
from hopaas_p2p.runtime.arguments import expanded
from hopaas_p2p.runtime.atomic import read_regular
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.runtime.redaction import path_of
from hopaas_p2p.stores.base import EXCHANGE_TIMEOUT, Progress
from hopaas_p2p.stores.directory.files import BOX, DESCRIPTION, Directory, describe
from hopaas_p2p.stores.objects.contract import Found

SCHEME: Final = "folder://"
_LOOKS: Final = (0.002, 0.02)  # seconds between looks for an answer: the first, the longest
_SHARE: Final = 0.1  # the longest pause, as a fraction of the wait so far
_SERVERS: Final = 64
_LEFT: Final = 3600.0  # seconds for which an answer waits for its caller


class Box:
    """The folder, for both sides. Any thread may call its methods.

    Raises:
        NoStore: no server has run there yet.
        StoreAway: the folder cannot be read at the moment.
        ConfigurationError: the folder is not a box.

    """

    def __init__(self, place: str | Path, *, timeout: float = EXCHANGE_TIMEOUT) -> None:
        if isinstance(place, str):
            place = path_of(place)
        self.path = place.absolute()
        self.url = SCHEME + self.path.as_uri().removeprefix("file://")
        self.timeout = timeout
        try:
            with waits_for(str(self.path / BOX), StoreAway):
                said = json.loads(read_regular(self.path / BOX, limit=DESCRIPTION))
            self.leads_to, uuid = str(said["store"]), str(said["uuid"])
        except FileNotFoundError:
            raise NoStore(
                f"nothing is served through {self.path}. On a node that reaches the store, start: hopaas-p2p serve "
                f"folder {self.path} STORE"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigurationError(f"{self.path / BOX} cannot be read: {error}") from None
        self.objects = Directory(self.path, meta=BOX)
        self.objects.uuid = uuid
        self.name = f"{self.url} {uuid} {self.leads_to}"
        """A name unique to this folder, even among earlier or later ones in the same place."""
        self._caller = secrets.token_hex(6)
        self._left: dict[tuple[str, str], set[str]] = {}
        """Log and nonce of a commit -> the unanswered requests with this commit."""

    @classmethod
    def make(cls, path: Path, store: str) -> Box:
        """The folder for a server of this store; a newly created one is private to this user.

        Raises:
            ConfigurationError: another store is served there, or the folder cannot be created.

        """
        path = expanded(path).absolute()
        with explained(f"cannot serve through {path}"):
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            if (path / "v1").exists():
                raise ConfigurationError(f"{path} is a store itself. Choose an empty folder")
            if not (path / BOX).exists():
                describe(path / BOX, {"format": protocol.VERSION, "uuid": secrets.token_hex(16), "store": store})
            found = path.stat()
        box = cls(path)
        if box.leads_to != store:
            raise ConfigurationError(f"{path} already serves another store, {box.leads_to}. Choose another folder")
        if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or found.st_uid != os.geteuid():
            others = "its group" if found.st_mode & stat.S_IRWXG else "its owner, who is somebody else"
            who = "every user of this machine" if found.st_mode & stat.S_IRWXO else others
            LOG.warning(
                "%s is open to %s: anyone who may write there acts with this server's rights, and anyone who may read "
                "there sees its answers. To make it private: chmod go-rwx %s",
                path,
                who,
                path,
            )
        return box

    # --- for callers ---

    def ask(self, call: str, *arguments: Any, place: str = "") -> Any:
        """The result of a request; raises the server's error.

        Raises:
            StoreUnreachable: there was no answer in time. A request that commits something stays in the folder.
            Denied: this user may not write there.

        """
        request = StoreRequest(call, place, arguments)
        return self._result_of(request, self._name(request))

    def _name(self, request: StoreRequest) -> str:
        """A unique name, except that a commit sent again has the name of its earlier request."""
        if request.commit is None:
            return f"{self._caller}-{secrets.token_hex(12)}"
        return f"{self._caller}-{hashlib.blake2b(protocol.encode(request), digest_size=12).hexdigest()}"

    def put(self, key: str, source: Path) -> None:
        """Give a copy of this file to the server. The copy is durable when this returns, and stored once the store
        answers.
        """
        request = StoreRequest("put", key)
        name = self._name(request)
        self.objects.upload(f"files/{name}", source)
        try:
            self.objects.put_new(f"requests/{name}", protocol.encode(request))
        except HopaasError:  # no server would fetch the file, and the next attempt has another name
            with contextlib.suppress(HopaasError):
                self.objects.delete([f"files/{name}"])
            raise
        with contextlib.suppress(StoreUnreachable):  # the copy is safe; wait so that it is stored before its record
            self._result_of(request, name, there=True)

    def get(self, key: str, target: Path, progress: Progress | None) -> None:
        """Write the data stored under the key to this file.

        Raises KeyError if there are none, StoreUnreachable if the data were lost in the folder, and like `ask`.
        """
        request = StoreRequest("get", key)
        name = self._name(request)
        self._result_of(request, name)
        if not self.objects.download(f"files/{name}", target, progress):
            raise StoreUnreachable(f"{key} was lost in transit; get it again")
        self.objects.delete([f"files/{name}"])

    def withdraw(self, place: str, nonce: str) -> None:
        """Remove the requests with this commit from the folder, if they have not been carried out yet."""
        self.objects.delete(f"requests/{name}" for name in self._left.pop((place, nonce), ()))

    def _result_of(self, request: StoreRequest, name: str, *, there: bool = False) -> Any:
        commit = request.commit
        stays = commit is not None or request.call in ("put", "delete")
        if commit is not None:
            self._left.setdefault((request.place, commit.nonce), set()).add(name)
        try:
            waits = request.call in ("put", "get", "keys")
            data = self._exchange(name, protocol.encode(request), waits=waits, there=there)
        except BaseException as error:
            if not stays:
                with contextlib.suppress(HopaasError):
                    self.objects.delete([f"requests/{name}"])
            if isinstance(getattr(error, "__cause__", None), PermissionError):
                raise Denied(f"you may not write to {self.path}; ask its owner for write permission") from None
            raise
        if commit is not None:
            self._left.pop((request.place, commit.nonce), None)
        return protocol.result_of(request.call, data)

    def _exchange(self, name: str, body: bytes, *, waits: bool, there: bool) -> bytes:
        """Put a request into the folder, unless it is `there`, and take its answer.

        With `waits`, wait for as long as a server is at work. A request in the folder is not put again, because between
        its removal by a server and the answer, it would count as new.
        """
        answer, began = f"answers/{name}", time.monotonic()
        seen, changed = "", began
        found = self.objects.get(answer, limit=LARGEST)  # the answer to an earlier attempt
        if found is None and not there:
            self.objects.put_new(f"requests/{name}", body)
        while found is None or not found.size:
            waited = time.monotonic() - began
            if waited >= self.timeout:
                if waits and (beats := repr(self.beats())) != seen:
                    seen, changed = beats, time.monotonic()
                if not waits or time.monotonic() - changed > self.timeout:
                    raise StoreUnreachable(
                        f"no server has answered through {self.path} within {waited:.0f} s. Check that `hopaas-p2p "
                        "serve folder` runs, and that it reaches the store. Nothing is lost: results stay in the "
                        "folder, and are sent when a server runs again."
                    )
            time.sleep(min(max(_LOOKS[0], _SHARE * waited), _LOOKS[1]) * random.uniform(0.7, 1.3))
            found = self.objects.get(answer, limit=LARGEST)
        self.objects.delete([answer])
        return found.data

    def forget(self) -> None:
        """In a forked child, forget the parent's requests."""
        self._caller, self._left = secrets.token_hex(6), {}

    def hang_up(self) -> None:
        """Do nothing, because no request through a folder waits for news."""

    def close(self) -> None:
        """Do nothing, because nothing is held open."""

    # --- for servers ---

    def requests(self) -> list[str]:
        """The names of the requests in the folder."""
        return [name for name in self.objects.names_in("requests") if valid_name(name)]

    def request(self, name: str, limit: int = LARGEST) -> Found | None:
        """A request, without its bytes if they are more than `limit`; None if it is no longer there."""
        return self.objects.get(f"requests/{name}", limit=limit)

    def answer(self, name: str, data: bytes) -> None:
        """Answer a request. Removes the request first, because after the answer its sender may put it there again."""
        self.objects.delete([f"requests/{name}"])
        self.objects.put_new(f"answers/{name}", data)

    def beats(self) -> dict[str, bytes]:
        """The heartbeats of at most 64 servers, because anyone who may write there can create any number of them."""
        names = self.objects.names_in("beats")[:_SERVERS]
        found = {name: self.objects.get(f"beats/{name}", limit=64) for name in names}
        return {name: one.data for name, one in found.items() if one is not None}

    def sweep(self, beat: str) -> None:
        """Remove answers, files and heartbeats that are an hour old, by the file system's time, which `beat` shows.

        `beat` is the key of a heartbeat that was just written. Files of waiting requests stay.
        """
        now = self.objects.modified(beat) or 0.0
        waiting = set(self.requests())
        for folder in ("answers", "files", "beats"):
            for name in self.objects.names_in(folder):
                made = self.objects.modified(f"{folder}/{name}")
                if made is not None and made < now - _LEFT and name not in waiting:
                    self.objects.discard([f"{folder}/{name}"])
