"""CSV, for spreadsheets, and Parquet, for data frames.

CSV has the columns of Optuna's `trials_dataframe()`, without intermediate values and distributions, and the last value
of each metric (`metrics_NAME`), which imports leave out. Text that a spreadsheet would run as a formula is quoted with
an apostrophe. Parquet has typed columns, and each trial's JSON line for imports.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from hopaas_p2p import extras
from hopaas_p2p.analysis.facts import last_metrics
from hopaas_p2p.core.records import Categorical, Distribution, Float, Int, TrialCreate, TrialState
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.export import jsonl
from hopaas_p2p.export.portable import Portable, PortableTrial, externals, json_or_text
from hopaas_p2p.space import parse_value
from hopaas_p2p.times import from_iso, to_iso, to_utc
from hopaas_p2p.translate import to_optuna

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_METADATA: Final = b"hopaas_p2p"
_ROOM: Final = 64 << 20
_RATIO: Final = 100
"""What the rows of a file may inflate to is _ROOM + _RATIO times its bytes."""


# --- CSV ---------------------------------------------------------------------------------------------------------


def dump_csv(portable: Portable) -> Iterator[str]:
    """The lines of a CSV file, with their ends."""
    rows = [_row(trial, portable) for trial in portable.trials]
    columns = _columns(portable, rows)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writerow({name: _cell(name) for name in columns})
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


def _value_columns(portable: Portable) -> list[str]:
    objectives = len(portable.directions or ("",))
    return ["value"] if objectives == 1 else [f"values_{index}" for index in range(objectives)]


def _columns(portable: Portable, rows: list[dict[str, Any]]) -> list[str]:
    """Fixed columns first, then parameters, attributes, and facts about the run."""
    first = ["number", *_value_columns(portable), "datetime_start", "datetime_complete", "duration"]
    last = ["reason", "site", "host", "state"]
    seen = dict.fromkeys(name for row in rows for name in row)
    middle = [name for name in seen if name.startswith("params_")]
    middle += [name for name in seen if name.startswith("user_attrs_")]
    middle += sorted(name for name in seen if name.startswith("metrics_"))
    return [*first, *middle, *last]


def _seconds(trial: PortableTrial) -> float | None:
    """How long it ran, over all its leases."""
    start, end = trial.record.start, trial.record.end
    if start is None or end is None:
        return None
    leases = [(past[2], past[3]) for past in trial.origin.get("history", ())]
    if (start, end) not in leases:  # else the last lease is in its history, too
        leases.append((start, end))
    return float(sum(max(0, ended - began) for began, ended in leases if began is not None)) / 1e6


def _row(trial: PortableTrial, portable: Portable) -> dict[str, Any]:
    record = trial.record
    peer = portable.peers.get(trial.origin.get("owner", ""), {})
    row: dict[str, Any] = {
        "number": trial.number,
        "datetime_start": to_iso(record.start),
        "datetime_complete": to_iso(record.end),
        "duration": _seconds(trial),
        "reason": record.reason,
        "site": peer.get("site"),
        "host": peer.get("host"),
        "state": record.state.name,
    }
    row.update(zip(_value_columns(portable), record.values or (), strict=False))
    row.update({f"params_{name}": value for name, value in externals(record)})
    row.update({f"user_attrs_{key}": parse_value(text) for key, text in record.user.items()})
    row.update({f"metrics_{name}": value for name, value in last_metrics(record).items()})
    return row


def _cell(value: Any) -> Any:
    if isinstance(value, str):  # a bare CR is not quoted, and begins a row
        value = value.replace("\r", "\n")
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return "" if value is None else value


def load_csv(lines: Iterable[str], *, space: dict[str, Distribution], name: str | None) -> Portable:
    """The trials of a CSV file with our columns, or those of Optuna's `trials_dataframe().to_csv()`.

    Parameters outside `space` get the narrowest distribution that holds their values.

    Raises:
        InvalidInput: a column or a cell cannot be read; the message says which.

    """
    try:
        rows = list(csv.DictReader(lines))
    except csv.Error as error:
        raise InvalidInput(f"this CSV cannot be read: {error}") from None
    if not rows or "state" not in rows[0]:
        raise InvalidInput("this CSV has no column 'state'; write one with `study export`, or trials_dataframe()")
    values = [column for column in rows[0] if column == "value" or column.startswith("values_")]
    params = [column for column in rows[0] if column.startswith("params_")]
    users = [column for column in rows[0] if column.startswith("user_attrs_")]
    cells = {column.removeprefix("params_"): [_unquoted(row[column]) for row in rows] for column in params}
    dists = {key: space[key] if key in space else _guess(column) for key, column in cells.items()}
    trials = []
    for at, row in enumerate(rows):
        try:
            trials.append(_from_row(at, row, values, params, users, dists))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"row {at + 2}: {error}") from None
    directions = None if len(values) == 1 else ("minimize",) * len(values)
    return Portable(name=name, directions=directions, trials=trials)


def _from_row(
    at: int,
    row: dict[str, str],
    values: list[str],
    params: list[str],
    users: list[str],
    dists: dict[str, Distribution],
) -> PortableTrial:
    named = {column.removeprefix("params_"): _unquoted(row[column]) for column in params if row[column] != ""}
    told = [float(row[column]) for column in values if row[column] not in ("", "None")]
    record = TrialCreate(
        state=TrialState[row["state"].rpartition(".")[2].upper()],
        params={key: jsonl._internal(to_optuna(dists[key]), _choice(dists[key], text)) for key, text in named.items()},
        dists={key: dists[key] for key in named},
        user={
            column.removeprefix("user_attrs_"): json.dumps(json_or_text(_unquoted(row[column])), ensure_ascii=False)
            for column in users
            if row[column] != ""
        },
        values=tuple(told) if len(told) == len(values) and told else None,
        reason=_unquoted(row.get("reason") or "") or None,
        start=_when(row.get("datetime_start")),
        end=_when(row.get("datetime_complete")),
    )
    return PortableTrial(int(row.get("number") or at), record, {})


def _unquoted(text: str) -> str:
    return text[1:] if text[:1] == "'" and text[1:2] in _FORMULA else text


def _choice(distribution: Distribution, text: str) -> Any:
    if not isinstance(distribution, Categorical):
        return text
    for choice in distribution.choices:
        if str(choice) == text:
            return choice
    raise ValueError(f"{text!r} is none of {distribution.choices}")


def _guess(column: list[str]) -> Distribution:
    given = [text for text in column if text != ""]
    try:
        numbers = [float(text) for text in given]
    except ValueError:
        return Categorical(tuple(dict.fromkeys(given)))
    if not all(map(math.isfinite, numbers)):  # a range cannot hold an infinity; choices can
        return Categorical(tuple(dict.fromkeys(given)))
    if all(text.lstrip("+-").isdigit() for text in given):
        return Int(int(min(numbers, default=0)), int(max(numbers, default=0)))
    return Float(min(numbers, default=0.0), max(numbers, default=0.0))


def _when(text: str | None) -> int | None:
    if not text or text == "NaT":
        return None
    return from_iso(text)


# --- Parquet -----------------------------------------------------------------------------------------------------


def dump_parquet(portable: Portable, path: Path) -> None:
    """Write a Parquet file.

    Raises:
        InvalidInput: pyarrow is not installed.

    """
    pa, parquet = _pyarrow()
    trials = portable.trials
    columns: dict[str, Any] = {
        "number": pa.array([trial.number for trial in trials], pa.int64()),
        "state": pa.array([trial.record.state.name for trial in trials], pa.string()),
        "values": pa.array([trial.record.values for trial in trials], pa.list_(pa.float64())),
        "datetime_start": pa.array([to_utc(t.record.start) for t in trials], pa.timestamp("us", tz="UTC")),
        "datetime_complete": pa.array([to_utc(t.record.end) for t in trials], pa.timestamp("us", tz="UTC")),
    }
    columns |= {f"params_{name}": column for name, column in _parameters(pa, trials).items()}
    pair = pa.struct([("step", pa.int64()), ("value", pa.float64())])
    reports = [[{"step": s, "value": v} for s, v in trial.record.reports.items()] for trial in trials]
    columns["reports"] = pa.array(reports, pa.list_(pair))
    logged = [
        [
            {"name": name, "step": s, "value": v}
            for name, values in trial.record.metrics.items()
            for s, v in values.items()
        ]
        for trial in trials
    ]
    columns["metrics"] = pa.array(logged, pa.list_(pa.struct([("name", pa.string()), *pair])))
    columns["reason"] = pa.array([trial.record.reason for trial in trials], pa.string())
    columns["record"] = pa.array([jsonl._text(jsonl.trial_line(trial)) for trial in trials], pa.string())
    metadata = {_METADATA: jsonl._text(jsonl.header(portable)).encode()}
    parquet.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


def load_parquet(path: Path) -> Portable:
    """The study in a Parquet file that `dump_parquet` wrote.

    Raises:
        InvalidInput: it is not such a file, or pyarrow is not installed.

    """
    pa, parquet = _pyarrow()
    try:
        file = parquet.ParquetFile(path)
        head = json.loads(file.schema_arrow.metadata[_METADATA])
        lines, left = [], _ROOM + _RATIO * path.stat().st_size
        for batch in file.iter_batches(batch_size=64, columns=["record"]):
            left -= batch.nbytes
            if left < 0:
                raise ValueError("its rows grow too large")
            lines += batch.column(0).to_pylist()
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{path} was not written by `hopaas-p2p study export`: {error}") from None
    return jsonl.load([json.dumps(head), *lines])


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InvalidInput(f"Parquet needs pyarrow: {extras.install('parquet')}") from None
    return pyarrow, pyarrow.parquet


def _parameters(pa: Any, trials: list[PortableTrial]) -> dict[str, Any]:
    rows = [dict(externals(trial.record)) for trial in trials]
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if kinds <= {float} or kinds <= {float, int}:
            columns[name] = pa.array([None if one is None else float(one) for one in values], pa.float64())
        if kinds <= {int} and all(one is None or -(1 << 63) <= one < 1 << 63 for one in values):
            columns[name] = pa.array(values, pa.int64())
        elif kinds <= {bool}:
            columns[name] = pa.array(values, pa.bool_())
        elif name not in columns:
            columns[name] = pa.array([None if one is None else str(one) for one in values], pa.string())
    return columns
