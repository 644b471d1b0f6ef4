"""A real `mlflow server` on SQLite, and a way to it that can be cut."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hopaas_p2p
from hopaas_p2p.study import Study
from tests.support.ports import free_port
from tests.support.postgres_fixtures import missing
from tests.support.processes import campaign, until


def needed(module: str) -> None:
    """At the top of a file whose tests all need it: skip them, or fail where everything has to be there."""
    if importlib.util.find_spec(module) is None:
        if os.environ.get("HOPAAS_TEST_REQUIRE") == "all":
            raise ModuleNotFoundError(f"{module} is not here, and HOPAAS_TEST_REQUIRE=all")
        pytest.skip(f"{module} is not here: pip install 'hopaas-p2p[integrations]'", allow_module_level=True)


def three_trials(directory: Path, **options: Any) -> Study:
    """A study with one COMPLETE trial that has a file, one PRUNED and one failed; close it."""
    study = campaign(directory, budget=2, **options)
    (directory / "model.txt").write_text("weights")

    def objective(trial: hopaas_p2p.Trial) -> float:
        for step in range(1, 4):
            trial.report(step / 2, step)
        if trial.number == 0:
            raise ValueError("diverged")
        if trial.number == 1:
            trial.prune()
        trial.upload(directory / "model.txt")
        trial.set_user_attr("seed", 7)
        return 0.75

    study.optimize(objective, catch=ValueError)
    return study


class Way:
    """127.0.0.1:port -> the server, while it is open; closing it cuts what goes through."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.port = free_port()
        self._listener: socket.socket | None = None
        self._clients: list[socket.socket] = []

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._clients.append(client)
                threading.Thread(target=self._pump, args=(client,), daemon=True).start()

    def _pump(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server, contextlib.suppress(OSError):
            other = {client.fileno(): (client, server), server.fileno(): (server, client)}
            ready = select.poll()  # unlike select, it takes descriptors of any number
            for number in other:
                ready.register(number, select.POLLIN)
            while True:
                for number, _ in ready.poll():
                    here, there = other[number]
                    data = here.recv(65536)
                    if not data:
                        return
                    there.sendall(data)

    def close(self) -> None:
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self._clients.clear()


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "mlflow server ended"
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@pytest.fixture(scope="session")
def mlflow_server() -> Iterator[str]:
    """The URI of a server that starts empty; tests use experiments of their own."""
    if importlib.util.find_spec("mlflow") is None:
        missing("MLflow (pip install 'hopaas-p2p[integrations]')")
    with a_server() as uri:
        yield uri


@contextlib.contextmanager
def a_server() -> Iterator[str]:
    """A server that starts empty, by its URI."""
    memory = Path("/dev/shm")  # where its forty migrations take a second, and not ten
    place = Path(tempfile.mkdtemp(prefix="hopaas-mlflow-", dir=memory if memory.is_dir() else None))
    port = free_port()
    words = [
        *(str(Path(sys.executable).with_name("mlflow")), "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--backend-store-uri", f"sqlite:///{place}/mlflow.db"),
        *("--artifacts-destination", str(place / "artifacts")),
    ]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # half a dozen processes that nobody here needs
    env["MLFLOW_ALLOWED_HOST_ADDRESSED_ARTIFACT_SCHEMES"] = "abfss"  # which older servers allow
    env["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with (place / "server.log").open("wb") as log:
        process = subprocess.Popen(words, cwd=place, stdout=log, stderr=log, env=env, start_new_session=True)
    try:
        until(lambda: _answers(port, process), 300, what=lambda: (place / "server.log").read_text())
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # it takes ten seconds to say goodbye
        process.wait()
        shutil.rmtree(place)


@pytest.fixture
def way(mlflow_server: str) -> Iterator[Way]:
    """A way to the server, closed at first."""
    one = Way(int(mlflow_server.rpartition(":")[2]))
    yield one
    one.close()
