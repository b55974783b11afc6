"""The quickstart's table: each model against the frozen CLIP on the same held-out clips, and the report."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from dgl_scale.evaluation.metrics import Difference, paired_bootstrap
from dgl_scale.evaluation.query_set import Evaluated
from dgl_scale.evaluation.report import summarise, write_report
from dgl_scale.evaluation.results import read_ranks, read_results
from dgl_scale.evaluation.retrieval import DIRECTIONS
from dgl_scale.evaluation.run_report import build_report, evaluation_folders, report_row

_BOOTSTRAP_SAMPLES = 10_000
_LOG_WIDTH = 132
_MODELS = {
    "frozen-clip": "Frozen CLIP",
    "temporal-head": "Frozen CLIP + temporal head",
    "linear": "DGL-Linear",
    "transformer": "DGL-Transformer",
}


@dataclass(frozen=True)
class ComparisonRow:
    """A model's results, and by how much its R@1 differs from the frozen CLIP's (None for the frozen CLIP itself)."""

    name: str
    folder: Path
    results: dict[str, Any]
    against_frozen: dict[str, Difference] | None


def compare(rivals: Mapping[str, Path], runs: Mapping[str, Path]) -> list[ComparisonRow]:
    """Rows for the rivals, the frozen CLIP first, then the runs' newest evaluations.

    Args:
        rivals: evaluation folders by name, the first one that of the frozen CLIP.
        runs: run folders by name.

    Raises:
        DataError: an evaluation is missing or damaged.
    """
    folders = {**rivals, **{name: _newest(folder) for name, folder in runs.items()}}
    frozen = next(iter(rivals.values()))
    rows = []
    for name, folder in folders.items():
        difference = None if folder == frozen else {direction: _difference(folder, frozen, direction) for direction in DIRECTIONS}
        rows.append(ComparisonRow(_title(name), folder, read_results(folder), difference))
    return rows


def print_comparison(rows: list[ComparisonRow]) -> None:
    """The table on stdout."""
    first = rows[0].results
    table = Table(title=f"{first['queries']} captions of {first['videos']} held-out clips; 95% intervals", title_justify="left")
    for column in ("model", "trained", "t2v R@1", "v2t R@1", "t2v R@5", "order (50 = chance)"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        results = row.results
        cells = [f"{results[d]['R@1']:.1f}\n{_gain(row, d)}" for d in DIRECTIONS]
        pairs = results.get("pair_accuracy")
        order = "" if pairs is None else f"{pairs['text_to_video']['accuracy']:.1f}\n{_bounds(pairs['text_to_video']['interval'])}"
        trained = f"{results['trained_parameters']:,}\n{100 * results['trained_share']:.2f}%"
        table.add_row(row.name, trained, *cells, f"{results['text_to_video']['R@5']:.1f}", order)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    console.print(table)


def write_comparison(path: Path, rows: list[ComparisonRow], runs: Mapping[str, Path], commands: list[str]) -> None:
    """The HTML report of all models; its summary is of the first of `runs`.

    Raises:
        DglError: the file cannot be written.
    """
    shown = next(row for row in rows if row.folder.is_relative_to(next(iter(runs.values()))))
    evaluations = [Evaluated(row.name, row.folder, row.folder.parent.parent, row.results) for row in rows]
    title = "DGL quickstart: text-video retrieval on held-out clips"
    write_report(path, build_report(evaluations, title=title, summary=_summary(rows, shown), commands=commands))


def _summary(rows: list[ComparisonRow], shown: ComparisonRow) -> str:
    """The run shown against the frozen CLIP; then the rival, which a headline must not hide."""
    frozen, rival = rows[0], next((row for row in rows if row.name.startswith(_MODELS["temporal-head"])), None)
    sentence = summarise([report_row(row.name, row.results) for row in (frozen, shown)], shown.results["queries"])
    if rival is None:
        return sentence
    return f"{sentence} A temporal head on the frozen features finds {rival.results['text_to_video']['R@1']:.1f}%."


def _newest(run_folder: Path) -> Path:
    return max(evaluation_folders(run_folder), key=lambda folder: (folder / "results.json").stat().st_mtime)


def _difference(folder: Path, frozen: Path, direction: str) -> Difference:
    ours, theirs = read_ranks(folder, direction), read_ranks(frozen, direction)
    groups = np.unique([row["key"] for row in ours], return_inverse=True)[1]
    ranks = [np.array([row["rank"] for row in rows]) for rows in (ours, theirs)]
    return paired_bootstrap(ranks[0], ranks[1], groups, samples=_BOOTSTRAP_SAMPLES, seed=0)


def _title(name: str) -> str:
    """`transformer-seed0` as `DGL-Transformer, seed 0`."""
    model, seed = re.fullmatch(r"(.*?)(?:-seed(\d+))?", name).groups()  # type: ignore[union-attr]
    return _MODELS.get(model, model) + (f", seed {seed}" if seed else "")


def _gain(row: ComparisonRow, direction: str) -> str:
    if row.against_frozen is None:
        return _bounds(row.results[direction]["interval"]["R@1"])
    gain = row.against_frozen[direction]
    return f"{gain.difference:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})"


def _bounds(bounds: list[float]) -> str:
    return f"{bounds[0]:.1f} to {bounds[1]:.1f}"
