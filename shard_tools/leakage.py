"""Does a split hold what another one holds? Exact and near-duplicate videos, and equal captions, between splits and within.

    dgl-scale shards leakage OUT [--write-exclusions FILE] [--report FOLDER]

Writes OUT/leakage.json (counts) and OUT/leakage.parquet (a row per pair of videos). OUT may be a URL.
"""

import itertools
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from dgl_scale.entry import Parser, run_command
from dgl_scale.errors import DglError, ExitCode
from dgl_scale.files import write_text
from dgl_scale.storage.storage import Storage
from dgl_scale.storage.urls import Location, join, public_url
from shard_tools.build_folder import location_of, read_record, read_splits, report_folder
from shard_tools.fingerprints import Fingerprints, Hashes, shard_fingerprints
from shard_tools.similar import similar_pairs

# Measured on real footage, encoded again in many ways (docs/shards.md).
_MAX_DISTANCE = 12
_MIN_SHARE = 0.5
_MAX_LINES = 20
_SCHEMA = pyarrow.schema(
    [(name, pyarrow.string()) for name in ("kind", "split", "key", "other_split", "other_key")] + [("share", pyarrow.float64())]
)


@dataclass(frozen=True)
class VideoPair:
    """Two videos that are one: `exact` in every stored byte, or `near`.

    Attributes:
        share: of the compared frames, those that have a match in the other video; of the video with fewer.
    """

    kind: str
    split: str
    key: str
    other_split: str
    other_key: str
    share: float


@dataclass(frozen=True)
class Leakage:
    """What `find_leakage` found.

    Attributes:
        videos: samples of each split.
        pairs: of videos, in order of splits and keys.
        captions: for two splits (or one and itself) how many captions of the second the first has too (or has
            several times), and how many of its videos have such a caption.
    """

    videos: dict[str, int]
    pairs: tuple[VideoPair, ...]
    captions: dict[tuple[str, str], tuple[int, int]]


def find_leakage(splits: dict[str, Fingerprints], mirrored: bool, max_distance: int = _MAX_DISTANCE) -> Leakage:
    """Compare all videos and captions of all splits.

    Args:
        mirrored: whether a mirror image is a duplicate too.
        max_distance: bits of 63 in which two frames may differ and still be one.
    """
    names = list(splits)
    prints = list(splits.values())
    keys = list(itertools.chain.from_iterable(each.keys for each in prints))
    split_of = np.repeat(np.arange(len(names)), [len(each.keys) for each in prints])
    content = np.concatenate([each.content for each in prints])
    hashes = np.concatenate([each.hashes for each in prints])
    others = np.concatenate([each.mirrored for each in prints]) if mirrored else None
    exact = _equal_pairs(content, split_of)
    near, shares = similar_pairs(hashes, others, max_distance, _MIN_SHARE)
    found = dict.fromkeys(exact, ("exact", 1.0))
    for one, other, share in zip(*near.T.tolist(), shares.tolist(), strict=True):
        found.setdefault((one, other), ("near", share))
    pairs = [
        VideoPair(kind, names[split_of[one]], keys[one], names[split_of[other]], keys[other], share)
        for (one, other), (kind, share) in sorted(found.items())
    ]
    captions = {
        (one, other): _shared_captions(splits[one], splits[other], one == other)
        for one, other in itertools.product(names, names)
        if len(splits[one].keys) and len(splits[other].keys)
    }
    return Leakage({name: len(each.keys) for name, each in splits.items()}, tuple(pairs), captions)


def read_fingerprints(output: Location, workers: int) -> dict[str, Fingerprints]:
    """Fingerprints of every split of a build, by split, in order of name.

    Raises:
        DataError: `output` is no finished build, or a shard is damaged.
        StorageError: the server cannot be reached or refuses.
    """
    storage = Storage()
    record = read_record(output, storage)
    splits = {}
    # Spawned, because forking a process that has threads (pyarrow's) can hang.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for split in read_splits(output, record, storage):
            shards = [join(split.folder, name) for name in split.shards if f"{name}.tar" in split.listed]
            read = pool.map if workers > 1 else map
            splits[split.name] = _joined(list(read(shard_fingerprints, shards)))
    return splits


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns an exit code."""
    parser = Parser(prog="leakage", description="Find videos and captions that two splits of a build share.")
    parser.add_argument("output", metavar="OUT", help="output folder of the build, or its URL")
    parser.add_argument("--report", metavar="FOLDER", help="where leakage.json and leakage.parquet go (default: OUT)")
    parser.add_argument(
        "--write-exclusions", metavar="FILE", help="write the keys of --from that another split has too, for `data.exclude`"
    )
    parser.add_argument("--from", dest="source", default="train", metavar="SPLIT", help="the split to exclude from (default train)")
    parser.add_argument("--mirrored", action="store_true", help="a mirror image is a duplicate too")
    parser.add_argument(
        "--max-distance", type=int, default=_MAX_DISTANCE, metavar="BITS", help=f"of 63, for a frame (default {_MAX_DISTANCE})"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="reading processes (default: all CPUs)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.max_distance <= 31 or arguments.workers < 1:
        parser.error("--max-distance must be 0 to 31, --workers 1 or more")
    return run_command(lambda: _command(arguments), debug=arguments.debug)


def _command(arguments: Any) -> int:
    output = location_of(arguments.output)
    folder = report_folder(output, arguments.report)
    splits = read_fingerprints(output, arguments.workers)
    if arguments.write_exclusions and arguments.source not in splits:
        raise DglError(f"{public_url(output)} has no split {arguments.source!r}; give --from one of {', '.join(splits)}")
    leakage = find_leakage(splits, arguments.mirrored, arguments.max_distance)
    _write_report(folder, leakage, arguments.mirrored, arguments.max_distance)
    _print_report(leakage)
    if arguments.write_exclusions:
        excluded = exclusions(leakage, arguments.source)
        write_text(Path(arguments.write_exclusions), "".join(f"{key}\n" for key in excluded))
        sys.stdout.write(f"\n{len(excluded)} keys of {arguments.source} written to {arguments.write_exclusions}, for data.exclude\n")
    return ExitCode.DONE


def exclusions(leakage: Leakage, source: str) -> list[str]:
    """Keys of `source`, sorted, of which another split has an exact or near duplicate."""
    pairs = [pair for pair in leakage.pairs if pair.split != pair.other_split]
    keys = {pair.key for pair in pairs if pair.split == source} | {pair.other_key for pair in pairs if pair.other_split == source}
    return sorted(keys)


def _joined(parts: Sequence[Fingerprints]) -> Fingerprints:
    firsts = itertools.accumulate((len(part.keys) for part in parts), initial=0)
    empty, rows = np.empty(0, dtype=np.uint64), np.empty((0, 8), dtype=np.uint64)
    return Fingerprints(
        keys=list(itertools.chain.from_iterable(part.keys for part in parts)),
        content=np.concatenate([empty, *(part.content for part in parts)]),
        hashes=np.concatenate([rows, *(part.hashes for part in parts)]),
        mirrored=np.concatenate([rows, *(part.mirrored for part in parts)]),
        captions=np.concatenate([empty, *(part.captions for part in parts)]),
        caption_video=np.concatenate(
            [np.empty(0, dtype=np.int64), *(part.caption_video + first for part, first in zip(parts, firsts, strict=False))]
        ),
    )


def _equal_pairs(content: Hashes, split_of: np.ndarray) -> list[tuple[int, int]]:
    """Each value with the first equal one of every split: a thousand copies are a few thousand pairs, not half a million."""
    places = list(enumerate(zip(content.tolist(), split_of.tolist(), strict=True)))
    firsts: dict[int, dict[int, int]] = {}
    for place, (value, split) in places:
        firsts.setdefault(value, {}).setdefault(split, place)
    pairs = {(min(first, place), max(first, place)) for place, (value, _) in places for first in firsts[value].values() if first != place}
    return sorted(pairs)


def _shared_captions(one: Fingerprints, other: Fingerprints, same: bool) -> tuple[int, int]:
    if same:
        values, counts = np.unique(one.captions, return_counts=True)
        shared = np.isin(other.captions, values[counts > 1])
    else:
        shared = np.isin(other.captions, one.captions)
    return int(shared.sum()), len(np.unique(other.caption_video[shared]))


def _write_report(folder: Location, leakage: Leakage, mirrored: bool, max_distance: int) -> None:
    captions = [
        {"of": other, "also_in": one, "captions": number, "videos": videos} for (one, other), (number, videos) in leakage.captions.items()
    ]
    report = {
        "videos": leakage.videos,
        "max_distance": max_distance,
        "min_share": _MIN_SHARE,
        "mirrored": mirrored,
        "video_pairs": [{"splits": list(splits), **dict(counts)} for splits, counts in _count(leakage).items()],
        "captions": captions,
    }
    storage = Storage()
    storage.write_json(join(folder, "leakage.json"), report)
    table = pyarrow.Table.from_pylist([vars(pair) for pair in leakage.pairs], _SCHEMA)
    with storage.output_file(join(folder, "leakage.parquet")) as stream:
        pyarrow.parquet.write_table(table, stream)


def _count(leakage: Leakage) -> dict[tuple[str, str], Counter[str]]:
    counts = {pair: Counter({"exact": 0, "near": 0}) for pair in itertools.combinations_with_replacement(leakage.videos, 2)}
    for pair in leakage.pairs:
        counts[pair.split, pair.other_split][pair.kind] += 1
    return counts


def _print_report(leakage: Leakage) -> None:
    write = sys.stdout.write
    write("videos that are one          exact    near\n")
    for (one, other), counts in _count(leakage).items():
        where = f"within {one}" if one == other else f"{one} and {other}"
        write(f"  {where:<24} {counts['exact']:>7} {counts['near']:>7}\n")
    between = [pair for pair in leakage.pairs if pair.split != pair.other_split]
    for pair in between[:_MAX_LINES]:
        write(f"    {pair.kind:<5} {pair.split}/{pair.key} = {pair.other_split}/{pair.other_key} ({pair.share:.0%} of the frames)\n")
    if len(between) > _MAX_LINES:
        write(f"    and {len(between) - _MAX_LINES} more in leakage.parquet\n")
    write("captions that are equal      captions  of videos\n")
    for (one, other), (number, videos) in leakage.captions.items():
        where = f"twice in {one}" if one == other else f"of {other}, also in {one}"
        write(f"  {where:<26} {number:>8} {videos:>10}\n")


if __name__ == "__main__":
    raise SystemExit(main())
