"""Files beside the logs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from hopaas_p2p.stores.base import Store
from hopaas_p2p.testing.conformance.base import Conformance


class Files(Conformance):
    """Artifacts, by keys that are never paths."""

    def test_artifacts_are_kept_listed_overwritten_and_removed(self, store: Store, tmp_path: Path) -> None:
        artifacts = store.artifacts()
        source, target = tmp_path / "source", tmp_path / "target"
        for content in (b"first", random.Random(2).randbytes(2 << 20)):
            source.write_bytes(content)
            artifacts.put("study-1/7/model", source)
            self.reopen(store).artifacts().get("study-1/7/model", target)
            assert target.read_bytes() == content
        artifacts.put("study-1/8/model", source)
        assert artifacts.keys("study-1/") == ["study-1/7/model", "study-1/8/model"]
        assert artifacts.keys("study-1/7") == ["study-1/7/model"]
        assert artifacts.keys("study-2") == []
        artifacts.delete("study-1/7/model")
        artifacts.delete("study-1/7/model")
        assert artifacts.keys("study-1") == ["study-1/8/model"]
        with pytest.raises(KeyError):
            artifacts.get("study-1/7/model", target)

    @pytest.mark.parametrize("key", ["", "../secret", "/etc/passwd", "a//b", "a/../../b", "a\nb"])
    def test_a_key_that_is_not_ours_is_nowhere(self, store: Store, tmp_path: Path, key: str) -> None:
        artifacts = store.artifacts()
        with pytest.raises(KeyError):
            artifacts.get(key, tmp_path / "target")
