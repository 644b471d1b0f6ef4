"""Writes and reads CSV, for spreadsheets, and writes Parquet, for data frames.

CSV has the columns of Optuna's `trials_dataframe()` (`values_NAME` for a named objective) without system attributes,
and adds the reason, site, host and the last value of each metric (`metrics_NAME`). Imports ignore site, host and
metrics. At most 256 attributes and 256 metrics have their own columns; the others are in one column, `user_attrs` or
`metrics`, as JSON. Text that a
spreadsheet could run as a formula is quoted with an apostrophe. Parquet has typed columns, and all reports and metrics.
Times are exact.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from hopaas_p2p.analysis.facts import last_metrics, params_of, trial_row
from hopaas_p2p.analysis.objectives import names_given
from hopaas_p2p.core.attributes import METRIC_NAMES
from hopaas_p2p.core.records import (
    Categorical,
    Distribution,
    Float,
    Int,
    StudyDefine,
    StudySet,
    TrialCreate,
    TrialState,
)
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.moving.records import StudyRecords, origin
from hopaas_p2p.runtime import extras
from hopaas_p2p.runtime.times import from_iso, to_utc
from hopaas_p2p.spec.space import mapping, parse_value

_MOST_COLUMNS: Final = 256
"""The most columns of attributes, and of metrics. Peers choose the names, and each row has a cell per column."""
_COLUMNS: Final = {
    **{name: name for name in ("number", "reason", "site", "host", "state")},
    "datetime_start": "start",
    "datetime_complete": "end",
    "duration": "seconds",
}
"""Column -> its key in a trial's row."""
_FORMULA: Final = r"^{}(?='*[=+@\t\n\uff0b\uff0d\uff1d\uff20-])|(?<=[;\t\n]){}(?='*\"*[=+@\uff0b\uff0d\uff1d\uff20-])"
"""Where an apostrophe is added, because a formula may begin there: at the start of a cell, and after a semicolon, a tab
or a line break, where some spreadsheets split a cell. One more is added before a text's own apostrophes."""
_QUOTE, _UNQUOTE = re.compile(_FORMULA.format("", "")), re.compile(_FORMULA.format("'", "'"))
_CONTROLS: Final = dict.fromkeys({*range(32)} - {9, 10}, "\ufffd") | {13: "\n"}
"""Spreadsheets skip control characters before a formula; csv does not quote a bare CR, which begins a row."""


def dump_csv(source: StudyRecords) -> Iterator[str]:
    """The lines of a CSV file, with line ends."""
    objectives, given = len(source.define.directions), names_given(source.settings.system)
    unnamed = ["value"] if objectives == 1 else [f"values_{index}" for index in range(objectives)]
    values = [f"values_{name}" for name in given] or unnamed
    rows = [_cells(number, record, values) for number, record in source.trials.items()]
    seen = dict.fromkeys(name for row in rows for name in row)
    columns = ["number", *values, "datetime_start", "datetime_complete", "duration"]
    columns += [name for name in seen if name.startswith("params_")]
    for kind in ("user_attrs", "metrics"):
        names = [name for name in seen if name.startswith(f"{kind}_")]
        columns += names[:_MOST_COLUMNS]
        if others := set(names[_MOST_COLUMNS:]):
            columns.append(kind)
            for row in rows:
                rest = {name.removeprefix(f"{kind}_"): row.pop(name) for name in row.keys() & others}
                row[kind] = json.dumps(rest, ensure_ascii=False) if rest else None
    columns += ["reason", "site", "host", "state"]
    writer = csv.writer(SimpleNamespace(write=str), lineterminator="\n")  # returns the line
    for row in ({name: name for name in columns}, *rows):
        yield writer.writerow([cell(row.get(name)) for name in columns])


def _cells(number: int, record: TrialCreate, values: list[str]) -> dict[str, Any]:
    found = trial_row(number, record)
    return {
        **{column: found[name] for column, name in _COLUMNS.items()},
        **dict(zip(values, found["values"] or (), strict=False)),
        **{f"params_{name}": value for name, value in found["params"].items()},
        **{f"user_attrs_{key}": parse_value(text) for key, text in record.user.items()},
        **{f"metrics_{name}": value for name, value in last_metrics(record).items()},
    }


def cell(value: Any) -> Any:
    """The value in a form that is safe in a CSV file, in which no string is a formula."""
    if isinstance(value, str):
        return _QUOTE.sub("'", value.translate(_CONTROLS))
    return "" if value is None else value


def load_csv(
    lines: Iterable[str], *, space: dict[str, Distribution], name: str | None, directions: Sequence[str] = ()
) -> StudyRecords:
    """The trials of a CSV file with our columns, or those of Optuna's `trials_dataframe().to_csv()`.

    Parameters outside `space` get the narrowest distribution that holds their values. The file does not contain the
    directions: `directions` are used if there is one per column of values; otherwise, all values are minimized.

    Raises:
        InvalidInput: a column or a cell cannot be read; the message names it.

    """
    try:
        reader = csv.reader(lines)
        header = [_unquoted(column) for column in next(reader, [])]
        rows = [{column: text for column, text in zip(header, row, strict=False) if text} for row in reader if row]
    except csv.Error as error:
        raise InvalidInput(f"this CSV cannot be read: {error}") from None
    if "state" not in header:
        needed = "it needs state, value and params_NAME, as `study export` and trials_dataframe() write them"
        raise InvalidInput(f"this CSV has no column 'state': {needed}")
    if not rows:
        raise InvalidInput("this CSV has no trials")
    values = [column for column in dict.fromkeys(header) if column == "value" or column.startswith("values_")]
    params = [_under("params_", row) for row in rows]
    columns: dict[str, tuple[Distribution, Callable[[str], float]]] = {}
    for key in _under("params_", dict.fromkeys(header, "")):
        one = space[key] if key in space else _guess([row[key] for row in params if key in row])
        places = reversed(list(enumerate(one.choices))) if isinstance(one, Categorical) else ()
        choices = {str(choice): float(index) for index, choice in places}
        columns[key] = one, choices.__getitem__ if choices else float
    trials = {}
    for at, row in enumerate(rows):
        try:
            trials[at] = _from_row(row, values, columns)
        except (ValueError, KeyError, TypeError) as error:
            wrong = " is not a choice of its parameter" if isinstance(error, KeyError) else ""
            raise InvalidInput(f"row {at + 2}: {str(error)[:200]}{wrong}") from None
    own = tuple(directions) if len(directions) == len(values) else ("minimize",) * max(1, len(values))
    names = [column.removeprefix("values_") for column in values if column.startswith("values_")]
    named = {METRIC_NAMES: json.dumps(names)} if len(names) == len(own) and not "".join(names).isdigit() else {}
    return StudyRecords(StudyDefine(name or "", own), trials, StudySet(system=named))


def _from_row(
    row: dict[str, str], values: list[str], columns: dict[str, tuple[Distribution, Callable[[str], float]]]
) -> TrialCreate:
    """The trial in a row; `columns` has the distribution of each parameter, and the reader of its texts."""
    from hopaas_p2p.translate import read_json

    told = [float(row[column]) for column in values if row.get(column, "None") != "None"]
    state = row.get("state", "").rpartition(".")[2].upper()
    if state not in TrialState.__members__:
        raise ValueError(f"{row.get('state', '')!r} is not a state; write COMPLETE, PRUNED, FAIL or WAITING")
    if state == "COMPLETE" and not 0 < len(told) == len(values):
        raise ValueError("the trial is COMPLETE, but has no value; write FAIL, or give the value")
    user = dict(mapping(read_json(_unquoted(row.get("user_attrs", "{}"))), "user_attrs"))
    user |= {name: read_json(text) for name, text in _under("user_attrs_", row).items()}
    params = _under("params_", row)
    start, end = (row.get(column) for column in ("datetime_start", "datetime_complete"))
    return TrialCreate(
        state=TrialState[state],
        params={key: columns[key][1](text) for key, text in params.items()},
        dists={key: columns[key][0] for key in params},
        user={key: json.dumps(value, ensure_ascii=False) for key, value in user.items()},
        values=tuple(told) if len(told) == len(values) and told else None,
        reason=_unquoted(row.get("reason") or "") or None,
        start=None if start in (None, "", "NaT") else from_iso(start),
        end=None if end in (None, "", "NaT") else from_iso(end),
    )


def _under(prefix: str, row: dict[str, str]) -> dict[str, str]:
    """The cells of the columns that begin with the prefix, by the rest of their names."""
    return {column.removeprefix(prefix): _unquoted(text) for column, text in row.items() if column.startswith(prefix)}


def _unquoted(text: str) -> str:
    return _UNQUOTE.sub("", text)


def _guess(given: list[str]) -> Distribution:
    from hopaas_p2p.translate import checked_choices

    try:
        numbers = [float(text) for text in given]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):  # a range cannot hold an infinity; choices can
        return checked_choices(tuple(dict.fromkeys(given)))
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    return Int(int(low), int(high)) if all(text.lstrip("+-").isdigit() for text in given) else Float(low, high)


def dump_parquet(source: StudyRecords, path: Path) -> None:
    """Write a Parquet file.

    Raises:
        InvalidInput: pyarrow is not installed.

    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise InvalidInput(f"Parquet needs pyarrow: {extras.install('parquet')}") from None
    records = list(source.trials.values())
    when = pa.timestamp("us", tz="UTC")
    pair = pa.struct([("step", pa.int64()), ("value", pa.float64())])
    reports = [[{"step": s, "value": v} for s, v in record.reports.items()] for record in records]
    logged = [
        [{"name": name, "step": s, "value": v} for name, values in record.metrics.items() for s, v in values.items()]
        for record in records
    ]
    columns: dict[str, Any] = {
        "number": pa.array(list(source.trials), pa.int64()),
        "state": pa.array([record.state.name for record in records], pa.string()),
        "values": pa.array([record.values for record in records], pa.list_(pa.float64())),
        "datetime_start": pa.array([to_utc(record.start) for record in records], when),
        "datetime_complete": pa.array([to_utc(record.end) for record in records], when),
        **{f"params_{name}": column for name, column in _parameters(pa, records).items()},
        "reports": pa.array(reports, pa.list_(pair)),
        "metrics": pa.array(logged, pa.list_(pa.struct([("name", pa.string()), *pair]))),
        "user_attrs": pa.array([list(record.user.items()) for record in records], pa.map_(pa.string(), pa.string())),
        "reason": pa.array([record.reason for record in records], pa.string()),
        **{key: pa.array([origin(record).get(key) for record in records], pa.string()) for key in ("site", "host")},
    }
    parquet.write_table(pa.table(columns), path)


def _parameters(pa: Any, records: list[TrialCreate]) -> dict[str, Any]:
    """One column per parameter, with the type that holds all its values exactly, or else as text."""
    rows = [params_of(record) for record in records]
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            columns[name] = pa.array([None if one is None else str(one) for one in values], pa.string())
    return columns
