"""The page on S3 is true: its commands run, in order, on a real server; its table of refusals is tested elsewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.pages import ROOT, run_page
from tests.support.s3_server import S3Server

PAGE = "docs/s3.md"


def test_every_command_of_the_page_runs(s3_server: S3Server, tmp_path: Path) -> None:
    prefix = s3_server.new_prefix()
    said = run_page(
        PAGE,
        tmp_path,
        stands_in={
            "s3://tuning/campaign": f"s3://{s3_server.bucket}/{prefix}",
            "https://s3.example.org": s3_server.endpoint,
            "AKIAEXAMPLE": s3_server.keys[0][0],
            "an-example": s3_server.keys[0][1],
        },
    )
    assert "race" in said
    assert "Nothing to remove" in said
    for role in ("worker", "viewer", "owner"):
        policy = json.loads((tmp_path / f"{role}.json").read_text())
        assert all(prefix in str(statement) for statement in policy["Statement"])
    assert s3_server.keys[0][1] not in said


def test_the_prices_of_the_page_are_those_of_the_benchmark() -> None:
    from tests.benchmarks.bench_s3 import PRICES

    page = (ROOT / PAGE).read_text()
    found = re.search(r"\(([\d.]+) dollars for 1,000 PUTs or LISTs, ([\d.]+) for 1,000 GETs\)", page)
    assert found is not None
    assert [float(price) for price in found.groups()] == pytest.approx([1000 * PRICES["PUT"], 1000 * PRICES["GET"]])
