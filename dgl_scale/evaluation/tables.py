"""Results as a table for a terminal or a log."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dgl_scale.evaluation.metrics import GRADED, METRICS
from dgl_scale.evaluation.retrieval import DIRECTIONS
from dgl_scale.evaluation.split_record import read_coverage, read_leakage


def print_results(results: dict[str, Any]) -> None:
    """Print a results.json to stdout: both directions with 95% intervals, then reranking, twin pairs and origin."""
    console = Console(highlight=False)
    columns = [name for name in (*METRICS, *GRADED) if any(name in results[direction] for direction in DIRECTIONS)]
    console.print(f"{results['queries']:,} captions, {results['videos']:,} videos, split {results['split']}; 95% intervals by video")
    console.print(_table("metric", DIRECTIONS, [(name, [_with_interval(results[d], name) for d in DIRECTIONS]) for name in columns]))
    changed = {**results["rerank"], "pessimistic": results.get("pessimistic", {})}
    rows = [
        (f"{direction.replace('_', '-')} + {name.replace('_', ' ')}", [f"{values[column]:.1f}" for column in METRICS])
        for name, directions in changed.items()
        for direction in DIRECTIONS
        if (values := directions.get(direction))
    ]
    if rows:
        console.print(_table("variant", METRICS, rows))
    if "RSum" in results:
        console.print(f"RSum {results['RSum']:.1f} ({_interval(results['RSum_interval'])})")
    if bank := results["rerank"].get("qb_norm"):
        origin = f"β {bank['beta']:g} (by {bank['beta_chosen_on']}), k {bank['k']}, θ {bank['theta']}"
        console.print(f"QB-Norm: {origin}, bank of {bank['bank']:,} training captions")
    if pairs := results.get("pair_accuracy"):
        parts = [f"{d.replace('_', '-')} {pairs[d]['accuracy']:.1f}% ({_interval(pairs[d]['interval'])})" for d in DIRECTIONS]
        console.print(f"twin pairs told apart ({pairs['pairs']} pairs, chance 50%): {', '.join(parts)}", soft_wrap=True)
    for line in _origin(results):
        console.print(line, soft_wrap=True)
    console.print(f"trained parameters: {results['trained_parameters']:,} ({100 * results['trained_share']:.2f}% of the model)")
    console.print(f"checkpoint: {results['checkpoint']} ({results['selection']}), {results['seconds']:.1f} s", soft_wrap=True)


def _origin(results: dict[str, Any]) -> Iterator[str]:
    """What a reader must know of the videos: how many are not there, which others know them, what the prompts have seen."""
    if coverage := read_coverage(results):
        explained = "; pessimistic: with the videos that are not there as misses" if "pessimistic" in results else ""
        yield f"coverage: {', '.join(f'{count:,} {name}' for name, count in coverage.items())}{explained}"
    for line in read_leakage(results) or ():
        yield f"leakage: {line}"
    if results.get("transfer"):
        trained = results["trained_on"]
        yield f"zero-shot transfer: trained on {trained['dataset']} (run {trained['run']}), evaluated on {results['dataset']}"


def _table(first: str, columns: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> Table:
    """Narrow enough for 80 characters."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name.replace("_", "-"), justify="right", no_wrap=True)
    for name, cells in rows:
        table.add_row(name, *cells)
    return table


def _with_interval(values: dict[str, Any], name: str) -> str:
    return f"{values[name]:.1f} ({_interval(values['interval'][name])})" if name in values else ""


def _interval(bounds: list[float]) -> str:
    return f"{bounds[0]:.1f}-{bounds[1]:.1f}"
