"""Real gateways in processes of their own, with certificates of an authority made for the test."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from hopaas_p2p import access
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.tunnel import client
from hopaas_p2p.tunnel.dial import GatewayConnection
from tests.support.ports import free_port
from tests.support.postgres import Server
from tests.support.service_process import ServiceProcess

HOST = "localhost"
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy", "HTTP_PROXY", "http_proxy")


class Authority:
    """A certificate authority, and certificates of it in files."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def certificate(self, *names: str, days: float = 365.0, name: str = "server") -> tuple[Path, Path]:
        """(certificate with its chain, key) for these names."""
        until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        issued = self._ca.issue_cert(*(names or (HOST, "127.0.0.1")), not_after=until.replace(tzinfo=None))
        chain, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        chain.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        return chain, key


class GatewayProcess(ServiceProcess):
    """A gateway, started by its command."""

    begins = "Gateway listening on"

    def __init__(self, folder: Path, *options: str, port: int = 0, **env: str) -> None:
        self.port = port or free_port()
        listen = f"127.0.0.1:{self.port}"
        super().__init__("gateway", "--listen", listen, *options, log=folder / f"gateway-{self.port}.log", env=env)

    def events(self, what: str) -> list[dict[str, Any]]:
        """The log's events of that name."""
        found = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [one for one in found if one["event"] == what]

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait, whether it was stopped or not."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGCONT)
        super().kill()

    def metrics(self, authority: Authority) -> dict[str, float]:
        """The metrics by name and label."""
        lines = fetch(self.port, "/metrics", authority)[1].splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def fetch(port: int, path: str, authority: Authority) -> tuple[int, str]:
    """(status, text) of a page of the gateway."""
    import http.client
    import ssl

    context = ssl.create_default_context(cafile=authority.file)
    connection = http.client.HTTPSConnection(HOST, port, context=context, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


class Centre:
    """A computing centre with a database and gateways: what most tests need."""

    def __init__(self, server: Server, store: str, folder: Path, authority: Authority | None = None) -> None:
        self.server, self.store, self.folder = server, store, folder
        self.authority = authority or Authority(folder)
        self.pair = self.authority.certificate()
        self._gateways: list[GatewayProcess] = []

    @property
    def target(self) -> str:
        return f"postgresql://127.0.0.1:{self.server.port}/store"

    def gateway(self, *options: str, tls: bool = True, target: str = "", port: int = 0) -> GatewayProcess:
        """Start one more gateway."""
        pair = ["--tls-cert", str(self.pair[0]), "--tls-key", str(self.pair[1])] if tls else []
        made = GatewayProcess(self.folder, *pair, "--postgres", target or self.target, *options, port=port)
        self._gateways.append(made)
        return made.start()

    def token(self, user: str = "ann", **options: Any) -> access.NewToken:
        """A token for a user, who is made if need be."""
        with contextlib.suppress(InvalidInput):
            access.add_user(self.store, user)
        return access.create_token(self.store, user, **options)

    def url(self, *ports: int) -> str:
        """Of the store through these gateways."""
        first, *others = ports
        hosts = "".join(f"{'&' if number else '?'}host={HOST}:{port}" for number, port in enumerate(others))
        return f"postgresql+https://{HOST}:{first}/store{hosts}"

    def stop(self) -> None:
        for gateway in self._gateways:
            gateway.kill()


@pytest.fixture
def centre(postgres: Server, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Centre]:
    """A centre without a gateway yet, and an environment in which its authority is trusted."""
    made = Centre(postgres, postgres_url, tmp_path)
    for name in (*PROXIES, "HOPAAS_TOKEN", "HOPAAS_TOKEN_FILE", "PGHOST", "PGPASSWORD", "PGPASSFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOPAAS_CA_FILE", str(made.authority.file))
    forget_gateways()
    yield made
    made.stop()


def forget_gateways() -> None:
    """As if this process had not dialled a gateway yet."""
    client._preferred = None
    client._busy_until.clear()
    client._avoided_until.clear()


def tunnels() -> int:
    """Tunnels of this process that are open."""
    return len(client._tunnels)


class Raw:
    """A line to a gateway, spoken on by hand."""

    def __init__(self, line: GatewayConnection) -> None:
        self.line = line
        line.socket.settimeout(60)

    def send(self, data: bytes) -> None:
        """Send these bytes in one frame."""
        self.line.protocol.send_binary(data)
        self.flush()

    def flush(self) -> None:
        with contextlib.suppress(OSError):  # the gateway may have closed already; it has said why
            self.line.socket.sendall(b"".join(self.line.protocol.data_to_send()))

    def receive(self) -> bytes:
        """The bytes of the next frames; none at the end."""
        while self.line.protocol.close_rcvd is None:
            with contextlib.suppress(ConnectionError):
                data = self.line.socket.recv(1 << 16)
                if not data:
                    break
                self.line.protocol.receive_data(data)
                found = b"".join(one.data for one in self.line.protocol.events_received() if one.opcode == 2)
                self.flush()
                if found:
                    return found
        return b""

    def until_closed(self) -> tuple[bytes, int | None]:
        """(all bytes, close code); closes this side, too."""
        parts = []
        while data := self.receive():
            parts.append(data)
        closed = self.line.protocol.close_rcvd
        self.line.socket.close()
        return b"".join(parts), closed.code if closed is not None else None


def startup(**parameters: str) -> bytes:
    """A StartupMessage."""
    body = b"".join(f"{key}\0{value}\0".encode() for key, value in parameters.items()) + b"\0"
    return struct.pack("!II", len(body) + 8, 3 << 16) + body
