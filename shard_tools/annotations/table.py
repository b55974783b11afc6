"""Videos from a table: CSV, TSV, JSONL or Parquet, a row per video or per caption."""

import codecs
import csv
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet

from dgl_scale.errors import ConfigError, DataError
from dgl_scale.shards_config import ColumnsConfig
from dgl_scale.storage.urls import public_url
from shard_tools.annotations.videos import AnnotatedVideo, check_split, clean_text, join_rows, json_values, parse_captions, parse_segment
from shard_tools.failures import SampleFailure

_MAX_CSV_FIELD_CHARS = 1 << 24
_PATTERN_COLUMN = re.compile(r"\{([^{}]+)\}")
_BATCH_ROWS = 4096


def read_table(path: Path, columns: ColumnsConfig, default_split: str, encoding: str = "utf-8") -> list[AnnotatedVideo]:
    """The videos of a table, in order of first appearance; rows of the same video are joined.

    Raises:
        ConfigError, DataError: as `table_rows`; two videos of one id.
    """
    return join_rows(table_rows(path, columns, default_split, encoding))


def table_rows(path: Path, columns: ColumnsConfig, default_split: str, encoding: str = "utf-8") -> Iterator[AnnotatedVideo]:
    """A video per row of a table, as they stand; a table larger than the memory is read in passing.

    The suffix tells the format. A video is a path in the videos folder, or a URL. A caption is a text or, in
    JSONL and Parquet, a list of texts. Columns that no key of `columns` names go to `extra` where JSON can hold them.

    Raises:
        ConfigError: a suffix that is not known.
        DataError: the file is missing or malformed, or lacks a column.
    """
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"annotations {path} must end in {', '.join(sorted(readers))}")
    is_empty = True
    try:
        for where, row in reader(path, encoding):
            is_empty = False
            yield _video(row, where, columns, default_split)
    except OSError as error:
        raise DataError(f"cannot read annotations {path}: {error.strerror or error}; annotations=PATH says where they are") from error
    except UnicodeError as error:
        raise DataError(f"annotations {path} is not {encoding.upper()} text: {error}; set encoding, such as encoding=cp1252") from error
    if is_empty:
        raise DataError(f"annotations {path} has no rows")


def _video(row: dict[str, Any], where: str, columns: ColumnsConfig, default_split: str) -> AnnotatedVideo:
    for column in _required(columns):
        if column not in row:
            raise DataError(f"{where} has no column {column!r}; it has {', '.join(map(str, row)) or 'none'} (set `columns`)")
    path = _path(row, columns.video, where)
    video_id = _text(row[columns.video_id], columns.video_id, where) if columns.video_id else PurePosixPath(public_url(path)).stem
    split = check_split(_text(row[columns.split], columns.split, where), where) if columns.split else default_split
    named = {*_path_columns(columns.video), columns.caption, columns.video_id, columns.split, columns.start, columns.end}
    extra = json_values({str(key): value for key, value in row.items() if key not in named})
    captions: tuple[str, ...] = ()
    start, end, problem = 0.0, None, None
    # The place in the message is the row, not the file: rows must not depend on where the table lies.
    place = where.rpartition(": ")[2]
    try:
        captions = parse_captions(row[columns.caption], place)
        start, end = parse_segment(row[columns.start] if columns.start else None, row[columns.end] if columns.end else None, place)
    except SampleFailure as failure:
        problem = failure
    return AnnotatedVideo(clean_text(video_id), path, captions, split, start, end, extra, problem)


def _required(columns: ColumnsConfig) -> list[str]:
    names = (*_path_columns(columns.video), columns.caption, columns.video_id, columns.split, columns.start, columns.end)
    return [name for name in names if name is not None]


@functools.cache
def _path_columns(video: str) -> tuple[str, ...]:
    return tuple(_PATTERN_COLUMN.findall(video)) or (video,)


def _path(row: dict[str, Any], video: str, where: str) -> str:
    if _path_columns(video) == (video,):
        return _text(row[video], video, where)
    return _PATTERN_COLUMN.sub(lambda match: _text(row[match[1]], match[1], where), video)


def _text(value: Any, column: str, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: column {column!r} must be a text, got {value!r}")
    return value.strip()


def _with_mark(encoding: str) -> str:
    # utf-8-sig also reads files without the mark.
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def _read_csv(path: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(_MAX_CSV_FIELD_CHARS)
    with open(path, encoding=_with_mark(encoding), newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            for row in rows:
                where = f"{path}: line {rows.line_num}"
                if None in row:
                    raise DataError(f"{where} has more cells than the header has columns; quote cells that hold the separator")
                yield where, row
        except csv.Error as error:
            raise DataError(f"{path}: line {rows.reader.line_num} is not valid CSV: {error}") from error


def _read_jsonl(path: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, encoding=_with_mark(encoding)) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            where = f"{path}: line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{where} is not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{where} must be a JSON object, got {type(row).__name__}")
            yield where, row


def _read_parquet(path: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except pyarrow.lib.ArrowException as error:
        raise DataError(f"annotations {path} is not a valid Parquet file: {str(error).splitlines()[0]}") from error
