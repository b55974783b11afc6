"""`dgl-scale metrics FILE`: the retrieval metrics of anybody's similarity matrix."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgl_scale.entry import Parser, run_command
from dgl_scale.errors import DataError, ExitCode
from dgl_scale.evaluation.metrics import GRADED, METRICS, bootstrap_interval, recall_sum, recall_sum_interval, retrieval_metrics

_DIRECTIONS = ("text_to_video", "video_to_text")
_SAMPLES = 2000
_SCORES_AT_ONCE = 4_000_000


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, rank, print both directions; returns the exit code."""
    parser = Parser(
        prog="dgl-scale metrics", description="Retrieval metrics of a similarity matrix, ties counted half, with 95% intervals by video."
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="similarities [captions, videos]: .npy, .npz, .pt or .parquet")
    parser.add_argument(
        "--videos", metavar="FILE", type=Path, help="integers [captions], the column of each caption's video; default: the diagonal"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument("--markdown", action="store_true", help="print a Markdown table")
    form.add_argument("--latex", action="store_true", help="print a LaTeX table, for booktabs")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments), debug=arguments.debug)


def _run(arguments: Namespace) -> int:
    # Imported here, as elsewhere in this file, so that --help stays instant: it loads torch.
    from dgl_scale.evaluation.similarity_file import load_similarity

    similarity, videos = load_similarity(arguments.file)
    if arguments.videos is not None:
        videos = np.asarray(load_similarity(arguments.videos)[0])
    results = matrix_metrics(similarity, np.arange(len(similarity)) if videos is None else videos)
    if arguments.json:
        sys.stdout.write(json.dumps(results, indent=2) + "\n")
    else:
        lines = _cells(results)
        write = _markdown if arguments.markdown else _latex if arguments.latex else _text
        sys.stdout.write(write(lines))
    return ExitCode.DONE


def matrix_metrics(similarity: NDArray[Any], target: NDArray[Any]) -> dict[str, Any]:
    """Metrics and `interval` of both directions of similarities `[Q, V]`, where caption q describes video `target[q]`; `RSum`.

    Reads the matrix three times at most, some rows or columns at a time, so that it may be a memory-mapped file.

    Raises:
        DataError: not a matrix, NaN or infinity in it, targets that do not fit, or a video without a caption.
    """
    from dgl_scale.evaluation.retrieval import add_graded

    _check_shape(similarity, target)
    num_videos = similarity.shape[1]
    own = np.concatenate([_finite(similarity, rows)[np.arange(len(target[rows])), target[rows]] for rows in _blocks(*similarity.shape)])
    best = np.full(num_videos, own.min(), dtype=own.dtype)
    np.maximum.at(best, target, own)
    text_ranks, above, equal = np.empty(len(target)), np.zeros(num_videos, np.int64), np.zeros(num_videos, np.int64)
    for rows in _blocks(*similarity.shape):
        scores, right = similarity[rows], own[rows, None]
        text_ranks[rows] = 1 + (scores > right).sum(axis=1) + ((scores == right).sum(axis=1) - 1) / 2
        above += (scores > best).sum(axis=0)
        equal += (scores == best).sum(axis=0)
    video_ranks = 1 + above + (equal - np.bincount(target[own == best[target]], minlength=num_videos)) / 2
    results: dict[str, Any] = {
        name: {**retrieval_metrics(ranks), "interval": bootstrap_interval(ranks, groups, samples=_SAMPLES, seed=0)}
        for name, ranks, groups in zip(_DIRECTIONS, (text_ranks, video_ranks), (target, np.arange(num_videos)), strict=True)
    }
    if len(target) > num_videos:
        add_graded(results["video_to_text"], *_own_standing(similarity, target), target, samples=_SAMPLES, seed=0)
    interval = recall_sum_interval(text_ranks, video_ranks, target, samples=_SAMPLES, seed=0)
    return {**results, "RSum": recall_sum(text_ranks, video_ranks), "RSum_interval": interval, "queries": len(target), "videos": num_videos}


def _own_standing(similarity: NDArray[Any], target: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    from dgl_scale.evaluation.own_captions import standing

    above, equal = np.zeros(len(target), np.int64), np.zeros(len(target), np.int64)
    own = np.split(np.argsort(target, kind="stable"), np.bincount(target, minlength=similarity.shape[1]).cumsum()[:-1])
    for columns in _blocks(*similarity.shape[::-1]):
        scores = np.ascontiguousarray(similarity[:, columns].T)
        for video, column in enumerate(scores, columns.start):
            above[own[video]], equal[own[video]] = standing(column, column[own[video]])
    return above, equal


def _blocks(size: int, width: int) -> Iterator[slice]:
    step = max(1, _SCORES_AT_ONCE // width)
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _finite(similarity: NDArray[Any], rows: slice) -> NDArray[Any]:
    scores = np.asarray(similarity[rows])
    if not np.isfinite(scores).all():
        row, column = np.argwhere(~np.isfinite(scores))[0]
        place = f"caption {rows.start + row} and video {column}"
        raise DataError(f"similarity of {place} is {scores[row, column]}; a ranking needs finite numbers")
    return scores


def _check_shape(similarity: NDArray[Any], target: NDArray[Any]) -> None:
    if similarity.ndim != 2 or similarity.size == 0 or not np.issubdtype(similarity.dtype, np.number) or np.iscomplexobj(similarity):
        raise DataError(
            f"similarities must be a matrix of real numbers [captions, videos], got {similarity.dtype} {list(similarity.shape)}"
        )
    captions, videos = similarity.shape
    if target.shape != (captions,) or not np.issubdtype(target.dtype, np.integer):
        raise DataError(f"--videos must hold {captions} integers, one a caption, got {target.dtype} {list(target.shape)}")
    if target.min() < 0 or target.max() >= videos:
        raise DataError(
            f"caption {int(np.argmax((target < 0) | (target >= videos)))} describes a video that the {videos} columns lack; give --videos"
        )
    without = np.flatnonzero(np.bincount(target, minlength=videos) == 0)
    if len(without):
        raise DataError(f"video {without[0]} has no caption ({len(without)} of {videos} have none); give --videos")


def _cells(results: dict[str, Any]) -> list[list[str]]:
    """The table, header first."""
    columns = [name for name in (*METRICS, *GRADED) if any(name in results[direction] for direction in _DIRECTIONS)]
    lines = [["", *columns]]
    for direction in _DIRECTIONS:
        values = results[direction]
        cells = [_with_interval(values[name], values["interval"][name]) if name in values else "" for name in columns]
        lines.append([direction.replace("_", "-"), *cells])
    return [*lines, ["RSum", _with_interval(results["RSum"], results["RSum_interval"]), *[""] * (len(columns) - 1)]]


def _with_interval(value: float, bounds: Sequence[float]) -> str:
    return f"{value:.1f} ({bounds[0]:.1f}-{bounds[1]:.1f})"


def _text(lines: Sequence[Sequence[str]]) -> str:
    return "".join((f"{line[0]:<14}" + "".join(f"{cell:>22}" for cell in line[1:])).rstrip() + "\n" for line in lines)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    ruled = [lines[0], ["---"] + ["--:"] * (len(lines[0]) - 1), *lines[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in ruled)


def _latex(lines: Sequence[Sequence[str]]) -> str:
    rows = [" & ".join(line).rstrip() + r" \\" for line in lines]
    parts = [rf"\begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}", r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"]
    return "\n".join([*parts, r"\end{tabular}"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
