"""Reading of published annotation files: text of any usual encoding, JSON, CSV, lists of ids.

Every error is one line that says which key of the config names the file, the file, and the place in it.
"""

import codecs
import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from dgl_scale.errors import DataError

_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class AnnotationFile:
    """A file of a dataset section of the config.

    Attributes:
        key: the config key that names it, such as `msrvtt.captions`.
    """

    key: str
    path: Path

    def __str__(self) -> str:
        return f"{self.key}: {self.path}"


def read_bytes(file: AnnotationFile) -> bytes:
    """The content of a file.

    Raises:
        DataError: it is missing, unreadable or empty.
    """
    try:
        content = file.path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{file.key}: no file {file.path}; docs/datasets.md says where to get it, {file.key}=PATH says where it is"
        ) from error
    except OSError as error:
        raise DataError(f"{file.key}: cannot read {file.path}: {error.strerror or error}") from error
    if not content.strip():
        raise DataError(f"{file} is empty; get the file again")
    return content


def read_text(file: AnnotationFile) -> str:
    """The text of a file: UTF-8 with or without a mark, UTF-16 with one; lines that are neither are in Windows-1252.

    Line ends are kept. Windows-1252 is what older files, and lines pasted into newer ones, are in.

    Raises:
        DataError: as `read_bytes`, or it is no text.
    """
    content = read_bytes(file)
    try:
        text = content.decode("utf-16" if content.startswith(_UTF16_MARKS) else "utf-8-sig")
    except UnicodeDecodeError:
        lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
        text = "\n".join(_decode_line(file, number, line) for number, line in enumerate(lines, start=1))
    if "\0" in text:
        raise DataError(f"{file} is no text; is it another file?")
    return text


def _decode_line(file: AnnotationFile, number: int, line: bytes) -> str:
    escaped = line.decode("utf-8", "surrogateescape")
    broken = [character for character in escaped if "\udc80" <= character <= "\udcff"]
    if not broken:
        return escaped
    if len(broken) < sum(not character.isascii() for character in escaped):
        # Read as Windows-1252, its good characters would turn into others.
        raise DataError(f"{file}: line {number} is UTF-8 with broken characters; the file may be cut off, get it again")
    try:
        return line.decode("cp1252")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: line {number} is text in neither UTF-8 nor Windows-1252; is it another file?") from error


def read_json(file: AnnotationFile) -> Any:
    """The value of a JSON file.

    Raises:
        DataError: as `read_text`, or it is no JSON.
    """
    text = read_text(file)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not valid JSON: {error}; the file may be cut off, get it again") from error


def read_csv(file: AnnotationFile, columns: Iterable[str]) -> list[dict[str, str]]:
    """The rows of a comma-separated file with a header.

    Raises:
        DataError: as `read_text`; it lacks one of `columns`, has a malformed row, or no rows.
    """
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""), strict=True)
    try:
        header = list(reader.fieldnames or ())
        rows = list(reader)
    except csv.Error as error:
        raise DataError(f"{file}: line {reader.reader.line_num} is not valid CSV: {error}") from error
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(f"{file} has no column {missing[0]!r}; it has {', '.join(header)}")
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise DataError(f"{file}: row {number} has another number of cells than the header: {row[header[0]]!r}")
    if not rows:
        raise DataError(f"{file} has no rows")
    return rows


def read_ids(file: AnnotationFile, column: str = "video_id") -> list[str]:
    """The ids that a list names, each once, in order: column `column` of a CSV file, a NumPy array of texts, else an id a line.

    Raises:
        DataError: as `read_text` and `read_csv`; a .npy file holds anything but texts.
    """
    suffix = file.path.suffix.lower()
    if suffix == ".csv":
        ids = [row[column] for row in read_csv(file, [column])]
    elif suffix == ".npy":
        ids = _read_array(file)
    else:
        ids = read_text(file).splitlines()
    return list(dict.fromkeys(name.strip() for name in ids if name.strip()))


def _read_array(file: AnnotationFile) -> list[str]:
    try:
        array = numpy.load(io.BytesIO(read_bytes(file)), allow_pickle=False)
        return [str(name) for name in array.astype(numpy.str_).ravel()]
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file} is no NumPy array of texts; write it as a text file, an id a line") from error


def check_disjoint(splits: Mapping[str, Iterable[str]]) -> None:
    """Refuse ids that belong to two splits.

    Raises:
        DataError: names the first such id and both splits.
    """
    owner: dict[str, str] = {}
    for split, ids in splits.items():
        for name in ids:
            if owner.setdefault(name, split) != split:
                raise DataError(f"video {name!r} is in the files of split {owner[name]} and of split {split}; a video belongs to one")


def check_known(ids: Iterable[str], known: Iterable[str], file: AnnotationFile, source: str) -> None:
    """Refuse a list of ids of which `source` knows none: it is of another dataset. (Single unknown ones become rows.)

    Raises:
        DataError: names the list, `source`, and an id of each.
    """
    listed, held = list(ids), set(known)
    if not held.intersection(listed):
        example = f" (such as {min(held)!r})" if held else ""
        raise DataError(f"{file}: none of its {len(listed)} ids (such as {listed[0]!r}) is in {source}{example}; are they of one dataset?")
