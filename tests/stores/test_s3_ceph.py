"""Ceph's own S3 server: a plain bucket passes what every store must, one with versions is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import hopaas_p2p
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.open import open_store
from hopaas_p2p.stores.base import Store
from hopaas_p2p.stores.checks import examine
from hopaas_p2p.stores.s3.gc import collect
from hopaas_p2p.stores.s3.store import S3Store
from hopaas_p2p.testing.conformance import AcrossProcesses, StoreConformance
from tests.support.rgw import Rgw
from tests.support.s3_fixtures import s3_environment


@pytest.fixture(autouse=True)
def _keys(rgw: Rgw, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_environment(monkeypatch, rgw)


class TestCeph(StoreConformance, AcrossProcesses):
    commits = 8

    @pytest.fixture
    def store(self, rgw: Rgw) -> Iterator[Store]:
        store = open_store(rgw.url(rgw.new_prefix()))
        yield store
        store.close()


def test_the_doctor_finds_a_plain_bucket_sound_and_a_study_works(rgw: Rgw) -> None:
    url = rgw.url(rgw.new_prefix())
    study = hopaas_p2p.open_study(url, "s", space={"x": hopaas_p2p.Float(0, 1)}, budget=5)
    study.optimize(lambda trial: trial.params["x"])
    assert len(study.trials) == 5
    study.close()
    store = S3Store(url, create=False)
    assert [one for one in examine(store) if not one.passed] == []
    assert list(collect(store)) == []
    store.close()


def test_a_bucket_with_versions_is_refused(rgw: Rgw) -> None:
    url = rgw.url("store", bucket=rgw.new_bucket(versions=True))
    with pytest.raises(ConfigurationError, match="versioning"):
        hopaas_p2p.open_study(url, "s")


def test_versions_that_are_switched_on_stop_a_peer_before_its_first_commit(rgw: Rgw) -> None:
    from minio.versioningconfig import ENABLED, VersioningConfig

    bucket = rgw.new_bucket()
    url = rgw.url("store", bucket=bucket)
    hopaas_p2p.open_study(url, "s").close()
    rgw.client().set_bucket_versioning(bucket, VersioningConfig(ENABLED))
    study = hopaas_p2p.open_study(url, "s", create=False)
    with pytest.raises(ConfigurationError, match="versioning"):
        study.ask()
    study.close()
