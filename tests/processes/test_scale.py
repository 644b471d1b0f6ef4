"""What a large study costs: bytes of snapshots, and memory in a peer that joins. `make soak`: with a million trials."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import bench_scale


@pytest.mark.parametrize(
    ("trials", "written", "held"),
    [
        pytest.param(15_000, 700, 1200, id="15,000"),
        pytest.param(1_000_000, 200, 600, id="1,000,000", marks=pytest.mark.soak),
    ],
)
def test_a_large_study_costs_a_constant_number_of_bytes_per_trial(
    tmp_path: Path, trials: int, written: int, held: int
) -> None:
    """A trial of 5 parameters and 10 reports; without sharing, 15,000 trials cost 4,500 bytes of snapshots each."""
    assert bench_scale.make(tmp_path / "store", trials) / trials <= written
    _, _, _, sampling, everything = bench_scale.in_a_process(tmp_path / "store", trials)
    assert sampling <= held
    assert everything > sampling
