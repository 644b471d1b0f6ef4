"""`make bench`: every table, printed and kept in results.md here; `make bench ONLY="core s3"` measures some anew.

Each topic is a module `bench_<topic>` whose `main()` returns Markdown. It runs in a process of its own, so that none
inherits another's threads or memory, and its section replaces the one from the run before. docs/benchmarks.md is
written by hand; a test checks that its figures are among the results.
"""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.benchmarks.bench_core import machine

PAGE: Final = Path(__file__).with_name("results.md")
TOPICS: Final = {
    "core": "The core",
    "scale": "A million trials",
    "nfs": "A directory on NFS",
    "postgres": "Postgres",
    "s3": "S3",
    "https": "Through HTTPS",
    "folder": "Through a folder",
    "monitor": "The monitor",
    "notebook": "Plots in notebooks",
    "agents": "Agents and other languages",
    "trackers": "Trackers",
    "search_speed": "Asks in large studies",
    "search": "How well many peers search",
    "late": "The default after many evaluations",
    "transfer": "What earlier studies teach",
    "fidelity": "What rungs save",
    "populations": "What populations gain",
}
_INTRODUCTION: Final = """# Results of the benchmarks

For each topic that it measures, `make bench` replaces a section of this file; docs/benchmarks.md shows the figures that
help to decide. All columns of a table were measured in one run on one machine, so compare the ratios, not the seconds.
"Asked" is the target of the design.
"""
_LONGEST: Final = 1200.0  # seconds for one topic
_LONGER: Final = {"search": 4200.0, "late": 4200.0, "transfer": 4200.0, "fidelity": 4200.0}
_SECTION: Final = re.compile(r"^## .*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def main(topics: list[str]) -> int:
    """Measure these topics, or all; returns how many could not be measured."""
    unknown = [topic for topic in topics if topic not in TOPICS]
    if unknown:
        sys.exit(f"there is no benchmark of {', '.join(unknown)}; choose from: {', '.join(TOPICS)}")
    failed = 0
    for topic in topics or TOPICS:
        code = f"from tests.benchmarks.bench_{topic} import main; print(main())"
        longest = _LONGER.get(topic, _LONGEST)
        words = [sys.executable, "-W", "ignore", "-c", code]
        try:
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=longest, check=True)
        except subprocess.SubprocessError:
            failed += 1
            print(f"the benchmark of {topic} failed; the earlier table stays", file=sys.stderr)
            continue
        section = _section(TOPICS[topic], done.stdout)
        print(section)
        _keep(TOPICS[topic], section)
    return failed


def _section(title: str, said: str) -> str:
    body = re.sub(r"^#+ .*\n", "", said, flags=re.MULTILINE).strip()  # the title is given here, once
    load = os.getloadavg()[2]
    measured = f"Measured on {datetime.date.today():%Y-%m-%d}: {machine()}; load {load:.1f} over the last 15 minutes."
    return f"## {title}\n\n{measured}\n\n{body}\n"


def _keep(title: str, section: str) -> None:
    sections = {}
    for found in _SECTION.findall(PAGE.read_text() if PAGE.exists() else ""):
        sections[found.partition("\n")[0].removeprefix("## ")] = found.strip() + "\n"
    sections[title] = section
    ordered = [sections[one] for one in TOPICS.values() if one in sections]
    PAGE.write_text("\n".join([_INTRODUCTION, *ordered]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
