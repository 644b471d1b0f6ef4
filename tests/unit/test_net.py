"""What everything that reaches a server shares: the pauses between attempts, and whom to trust."""

from __future__ import annotations

import ssl
from pathlib import Path

import certifi
import pytest

from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.net.backoff import Backoff
from hopaas_p2p.net.trust import authorities, client_context


def test_pauses_double_up_to_the_limit_and_begin_again_after_a_success() -> None:
    backoff = Backoff(0.5, 3.0, uniform=lambda low, high: (low + high) / 2)
    assert [backoff.pause() for _ in range(4)] == [0.5, 1.0, 2.0, 3.0]
    backoff.reset()
    assert backoff.pause() == 0.5


def test_pauses_vary_by_the_given_factors() -> None:
    drawn: list[tuple[float, float]] = []

    def lowest(low: float, high: float) -> float:
        drawn.append((low, high))
        return low

    assert Backoff(2.0, 8.0, jitter=(0.75, 1.25), uniform=lowest).pause() == 1.5
    assert drawn == [(0.75, 1.25)]


def test_the_file_of_authorities_is_the_one_that_was_asked_for_before_the_environments(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("url", "HOPAAS_CA_FILE", "AWS_CA_BUNDLE", "SSL_CERT_FILE")}
    for file in files.values():
        file.touch()
    env = {name: str(file) for name, file in files.items() if name != "url"}
    assert authorities(str(files["url"]), aws=True, env=env) == str(files["url"])
    for name in ("HOPAAS_CA_FILE", "AWS_CA_BUNDLE", "SSL_CERT_FILE"):
        assert authorities(aws=True, env=env) == str(files[name])
        del env[name]
    assert authorities(env=env) == certifi.where()
    assert authorities(env={"AWS_CA_BUNDLE": "/nowhere"}) == certifi.where(), "only S3 has to do with AWS"
    with pytest.raises(ConfigurationError, match="no file /nowhere"):
        authorities(env={"SSL_CERT_FILE": "/nowhere"})


def test_a_context_verifies_and_is_made_anew_when_its_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text(Path(certifi.where()).read_text())
    context = client_context(str(file))
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert client_context(str(file)) is context
    file.write_text("nothing")
    with pytest.raises(ConfigurationError, match="holds no certificate authorities"):
        client_context(str(file))
