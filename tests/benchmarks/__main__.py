"""`make bench`: every table that this machine can measure, printed and kept in docs/benchmarks.md."""

from __future__ import annotations

import datetime
from pathlib import Path

from tests.benchmarks import bench_core


def main() -> None:
    text = f"""# Benchmarks

Measured by `make bench` on {datetime.date.today():%Y-%m-%d}: {bench_core.machine()}. Both sides of a line ran in
one run on one machine; compare the ratios, not the seconds. Optuna's side is its JournalStorage on a file, for CPU
its InMemoryStorage. "asked" is the bound that the design set itself.

{bench_core.main()}
"""
    print(text)
    Path("docs/benchmarks.md").write_text(text)


if __name__ == "__main__":
    main()
