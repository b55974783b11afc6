"""`dgl-scale metrics FILE.npy`: the retrieval metrics of anybody's similarity matrix."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgl_scale.entry import Parser, run_command
from dgl_scale.errors import DataError, ExitCode
from dgl_scale.evaluation.metrics import METRICS, bootstrap_interval, retrieval_metrics

_SAMPLES = 2000


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, rank, print both directions; returns the exit code."""
    parser = Parser(
        prog="dgl-scale metrics", description="Retrieval metrics of a similarity matrix, ties counted half, with 95% intervals by video."
    )
    parser.add_argument("file", metavar="FILE.npy", type=Path, help="similarities [captions, videos]")
    parser.add_argument(
        "--videos", metavar="FILE.npy", type=Path, help="integers [captions], the column of each caption's video; default: the diagonal"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)

    def work() -> int:
        similarity = _load(arguments.file)
        target = np.arange(len(similarity)) if arguments.videos is None else _load(arguments.videos)
        results = matrix_metrics(similarity, target)
        sys.stdout.write(json.dumps(results, indent=2) + "\n" if arguments.json else _table(results))
        return ExitCode.DONE

    return run_command(work, debug=arguments.debug)


def matrix_metrics(similarity: NDArray[Any], target: NDArray[Any]) -> dict[str, dict[str, Any]]:
    """Metrics and `interval` of both directions of similarities `[Q, V]`, where caption q describes video `target[q]`.

    Raises:
        DataError: not a matrix, NaN or infinity in it, targets that do not fit, or a video without a caption.
    """
    _check(similarity, target)
    queries = np.arange(len(target))
    own = similarity[queries, target].astype(np.float64)
    greater, equal = (similarity > own[:, None]).sum(axis=1), (similarity == own[:, None]).sum(axis=1)
    text_ranks = 1 + greater + (equal - 1) / 2

    best = np.full(similarity.shape[1], -np.inf)
    np.maximum.at(best, target, own)
    equal_right = np.bincount(target[own == best[target]], minlength=len(best))
    greater, equal = (similarity > best).sum(axis=0), (similarity == best).sum(axis=0)
    video_ranks = 1 + greater + (equal - equal_right) / 2
    return {
        name: {**retrieval_metrics(ranks), "interval": bootstrap_interval(ranks, groups, samples=_SAMPLES, seed=0)}
        for name, ranks, groups in (("text_to_video", text_ranks, target), ("video_to_text", video_ranks, np.arange(len(best))))
    }


def _load(path: Path) -> NDArray[Any]:
    try:
        # Never pickle: it may hold code.
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {path} as a .npy file: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} holds several arrays; save the one wanted as .npy")
    return array


def _check(similarity: NDArray[Any], target: NDArray[Any]) -> None:
    if similarity.ndim != 2 or similarity.size == 0 or not np.issubdtype(similarity.dtype, np.number) or np.iscomplexobj(similarity):
        raise DataError(
            f"similarities must be a matrix of real numbers [captions, videos], got {similarity.dtype} {list(similarity.shape)}"
        )
    if not np.isfinite(similarity).all():
        row, column = np.argwhere(~np.isfinite(similarity))[0]
        raise DataError(f"similarity of caption {row} and video {column} is {similarity[row, column]}; a ranking needs finite numbers")
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


def _table(results: dict[str, dict[str, Any]]) -> str:
    lines = [" " * 14 + "".join(f"{name:>20}" for name in METRICS)]
    for direction, values in results.items():
        cells = [f"{values[m]:.1f} ({values['interval'][m][0]:.1f}-{values['interval'][m][1]:.1f})" for m in METRICS]
        lines.append(f"{direction.replace('_', '-'):<14}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
