"""How long this job may still run: what the user said, or what the batch system says.

A limit is a duration from now. Slurm tells the end by a clock that it keeps in step with the node's (munge refuses
credentials otherwise). HTCondor tells durations, and its start by the submit machine's clock, which may be anything:
the start is taken from the job ad's file, which this node wrote when the job began.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.runtime import credentials

_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PARTS: Final = re.compile(r"(?:\d+(?:\.\d+)?\s*[smhd]\s*)+|\d+(?:\.\d+)?", re.IGNORECASE)
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)", re.IGNORECASE)
_CLOCK: Final = re.compile(r"(?:(\d+)-)?(\d+(?::\d+){0,2})")
_ATTRIBUTE: Final = re.compile(r"^(\w+)\s*=\s*(\d+)\s*$", re.MULTILINE)
_FIRM: Final = ("MaxRuntime", "AllowedExecuteDuration", "AllowedJobDuration")
"""Attributes of an HTCondor job that end it: the pool's own `+MaxRuntime`, and the two that a submit file has."""


def parse_duration(text: str) -> float:
    """Seconds in `4h`, `1h30m`, `90` (seconds), `2-12:00:00` or `12:00:00`, as Slurm writes them.

    Raises:
        InvalidInput: it is no duration, or not positive.

    """
    given = text.strip()
    if _PARTS.fullmatch(given):
        seconds = sum(float(number) * _UNITS[unit.lower()] for number, unit in _PART.findall(given))
    else:
        seconds = _clock(given) or 0.0
    if not seconds > 0:
        raise InvalidInput(f"{text!r} is not a duration; write 4h, 1h30m, 90s, 12:00:00 or 1-12:00:00")
    return seconds


def _clock(text: str) -> float | None:
    """Slurm's [days-]hours:minutes:seconds, or minutes:seconds where there are no days."""
    match = _CLOCK.fullmatch(text)
    if match is None or (":" not in text and match[1] is None):
        return None
    numbers = [int(number) for number in match[2].split(":")]
    if match[1] is not None:  # D-H, D-H:M, D-H:M:S
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    else:
        hours, minutes, seconds = (0, *numbers)[-3:]
    return int(match[1] or 0) * 86400.0 + hours * 3600.0 + minutes * 60.0 + seconds


def time_left(env: Mapping[str, str] = os.environ) -> tuple[float, str] | None:
    """(seconds, who says so) until the batch system ends this job; None if it sets no limit, or there is none."""
    for ask in (_slurm, _htcondor):
        found = ask(env)
        if found is not None:
            return found
    return None


def _slurm(env: Mapping[str, str]) -> tuple[float, str] | None:
    job = env.get("SLURM_JOB_ID")
    if not job:
        return None
    array, task = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
    shown = f"Slurm job {array}_{task}" if array and task else f"Slurm job {job}"
    end = env.get("SLURM_JOB_END_TIME", "")
    if end.isdigit():
        return max(0.0, int(end) - time.time()), shown
    if shutil.which("squeue") is None:
        return None
    try:
        said = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format", "%L"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=credentials.environment(),
        ).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    left = _clock(said[0]) if said else None  # UNLIMITED, INVALID and NOT_SET are no clocks
    return None if left is None else (left, shown)


def _htcondor(env: Mapping[str, str]) -> tuple[float, str] | None:
    path = env.get("_CONDOR_JOB_AD")
    if not path:
        return None
    try:
        ad = {name: int(number) for name, number in _ATTRIBUTE.findall(Path(path).read_text(errors="replace"))}
        began = Path(path).stat().st_mtime
    except OSError:
        return None
    limits = [ad[name] for name in _FIRM if ad.get(name, 0) > 0]
    if not limits and ad.get("MaxJobRetirementTime", 0) > 0:  # no end, but what is granted before a pre-emption
        limits = [ad["MaxJobRetirementTime"]]
    if not limits:
        return None
    gone = time.time() - began
    return max(0.0, min(limits) - max(0.0, gone)), f"HTCondor job {ad.get('ClusterId', '?')}.{ad.get('ProcId', '?')}"
