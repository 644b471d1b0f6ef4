"""A store on a real server with people in it: their tokens, storages and sessions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import psycopg2

import hopaas_p2p
from hopaas_p2p import access
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.stores.postgres.store import PostgresStore
from tests.support.postgres import Server

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Place:
    """A store with an administrator, and people in it."""

    def __init__(self, server: Server, admin: str) -> None:
        self.server, self.admin = server, admin
        self._open: list[Any] = []

    def token(self, user: str, **options: Any) -> tuple[str, str]:
        """A new token of this user, made if need be: (role, password)."""
        with contextlib.suppress(InvalidInput):
            access.add_user(self.admin, user)
        made = access.create_token(self.admin, user, **options)
        role, _, password = made.secret.reveal().partition(":")
        return role, password

    def url(self, token: tuple[str, str]) -> str:
        return self.server.url("store", user=token[0], password=token[1])

    def person(self, user: str) -> str:
        return self.url(self.token(user))

    def storage(self, url: str, **options: Any) -> hopaas_p2p.storage.Storage:
        storage = hopaas_p2p.open_storage(url, **options)
        self._open.append(storage)
        return storage

    def store(self, url: str) -> PostgresStore:
        store = PostgresStore(url)
        self._open.append(store)
        return store

    def study(self, url: str, name: str = "s") -> optuna.Study:
        study = optuna.create_study(storage=self.storage(url), study_name=name)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
        return study

    def uuid(self, name: str = "s") -> str:
        """That of a study."""
        return access.uuid_of(self.store(self.admin), name)

    @contextlib.contextmanager
    def session(self, url: str) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
        """A login with psql's powers."""
        with contextlib.closing(psycopg2.connect(url)) as connection:
            connection.autocommit = True

            def say(sql: str) -> list[tuple[Any, ...]]:
                with connection.cursor() as cursor:
                    cursor.execute(sql)
                    return list(cursor.fetchall()) if cursor.description else []

            yield say

    def close(self) -> None:
        for one in self._open:
            one.close()
