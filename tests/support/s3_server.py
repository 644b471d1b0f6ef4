"""What tests need of an S3 server; and one of yours in its place, so that anybody can hold the suite against theirs.

    HOPAAS_TEST_S3='s3://bucket?endpoint=http://127.0.0.1:9000&region=us-east-1,key,secret[,second key,second secret]'
    HOPAAS_TEST_S3_KILL='pkill -9 server'   HOPAAS_TEST_S3_START='server --data /srv &'   for the tests that kill it

Its endpoint must be a port of 127.0.0.1 without TLS, because proxies of the tests stand before it, and its bucket must
be there. What needs a second key, or the commands, is skipped without them.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Mapping
from typing import Any, Final, Self
from urllib.parse import parse_qsl, urlsplit


class S3Server:
    """A server on 127.0.0.1 whose first pair of keys may do everything."""

    port: int
    bucket: str
    keys: tuple[tuple[str, str], ...]
    _process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> Any:
        """The SDK's client."""
        import urllib3
        from minio import Minio

        http = urllib3.PoolManager(retries=False, timeout=5.0)
        address, (key, secret) = f"127.0.0.1:{self.port}", self.keys[0]
        return Minio(address, key, secret, secure=False, region="us-east-1", http_client=http)

    def new_bucket(self, *, versions: bool = False) -> str:
        """A bucket that nobody else uses, with versions if asked for. A prefix mostly does."""
        from minio.versioningconfig import ENABLED, VersioningConfig

        name = f"bucket-{secrets.token_hex(6)}"
        self.client().make_bucket(name)
        if versions:
            self.client().set_bucket_versioning(name, VersioningConfig(ENABLED))
        return name

    def new_prefix(self) -> str:
        """A place in the server's bucket that nobody else uses."""
        return f"store-{secrets.token_hex(6)}"

    def url(self, prefix: str, *, bucket: str = "", endpoint: str | None = None) -> str:
        """The store at this prefix; `endpoint` of a proxy before the server, if there is one."""
        return f"s3://{bucket or self.bucket}/{prefix}?endpoint={endpoint or self.endpoint}&region=us-east-1"

    def kill(self) -> None:
        """Kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def start(self) -> Self:
        """Start it, again if need be; returns when it answers."""
        raise NotImplementedError


class GivenServer(S3Server):
    """The server that the environment names."""

    def __init__(self, said: str, env: Mapping[str, str]) -> None:
        url, *keys = said.split(",")
        parts = urlsplit(url)
        endpoint = urlsplit(dict(parse_qsl(parts.query))["endpoint"])
        if endpoint.scheme != "http" or endpoint.hostname != "127.0.0.1" or endpoint.port is None:
            raise ValueError(f"HOPAAS_TEST_S3 needs an endpoint http://127.0.0.1:port, got {endpoint.geturl()}")
        self.port, self.bucket = endpoint.port, parts.netloc
        self.keys = tuple(zip(keys[::2], keys[1::2], strict=True))
        self._commands = env.get("HOPAAS_TEST_S3_KILL"), env.get("HOPAAS_TEST_S3_START")

    @property
    def can_be_killed(self) -> bool:
        return None not in self._commands

    def kill(self) -> None:
        subprocess.run(["sh", "-c", self._commands[0] or "false"], check=True)

    def start(self) -> Self:
        subprocess.run(["sh", "-c", self._commands[1] or "false"], check=True)
        return self


GIVEN: Final = GivenServer(os.environ["HOPAAS_TEST_S3"], os.environ) if "HOPAAS_TEST_S3" in os.environ else None
