"""Objects that a key which may only add puts ahead of the end of a log in a bucket."""

from __future__ import annotations

import contextlib
import logging

import pytest

import hopaas_p2p
from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, StudySet
from hopaas_p2p.open import open_store
from hopaas_p2p.stores.objects.log import TOMBSTONE
from hopaas_p2p.stores.s3.store import S3Store

SOUND = codec.encode(Commit("mallory", 1, "mallory", 0, (StudySet(user={"x": "1"}),)))


@pytest.mark.parametrize("data", [b"", b"garbage", TOMBSTONE, SOUND], ids=["empty", "garbage", "tombstone", "commit"])
@pytest.mark.parametrize("ahead", [1, 2, 3, 17])
def test_an_object_ahead_of_the_end_ends_neither_a_study_nor_the_store(
    data: bytes, ahead: int, s3_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(
        hopaas_p2p.open_study(s3_url, "s", space={"x": hopaas_p2p.Float(0, 1)}, budget=20)
    ) as study:
        study.tell(study.ask(), 1.0)
        uuid = study.handle.uuid
        store = open_store(s3_url)
        assert isinstance(store, S3Store)
        for log in (store.log(uuid), store.catalog()):
            end = log.exchange(None, 0).entries[-1].lsn
            assert store.objects.put_new(log.key(end + ahead), data)
        study.tell(study.ask(), 2.0)  # a peer that was there before
    with caplog.at_level(logging.WARNING, "hopaas_p2p"):
        joined = hopaas_p2p.open_study(s3_url, "s", create=False)
        joined.tell(joined.ask(), 3.0)
        other = hopaas_p2p.open_study(s3_url, "other")

    values = [trial.values for trial in joined.trials]
    assert values == [[1.0], [2.0], [3.0]]
    joined.close()
    other.close()
    with contextlib.closing(hopaas_p2p.open_storage(s3_url)) as storage:
        assert sorted(one.study_name for one in storage.get_all_studies()) == ["other", "s"]
    store.close()
