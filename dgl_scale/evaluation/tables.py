"""Results as a table for a terminal or a log."""

from typing import Any

from rich.console import Console
from rich.table import Table

from dgl_scale.evaluation.metrics import METRICS
from dgl_scale.evaluation.retrieval import DIRECTIONS


def print_results(results: dict[str, Any]) -> None:
    """Print a results.json to stdout: both directions with 95% intervals, then reranking, twin pairs and origin."""
    console = Console(highlight=False)
    table = Table(title=f"{results['queries']} captions, {results['videos']} videos, split {results['split']}", title_justify="left")
    table.add_column("direction")
    for name in METRICS:
        table.add_column(name, justify="right")
    for direction in DIRECTIONS:
        values = results[direction]
        cells = [f"{values[name]:.1f}\n{_interval(values['interval'][name])}" for name in METRICS]
        table.add_row(direction.replace("_", "-"), *cells)
    for name, directions in results["rerank"].items():
        for direction in DIRECTIONS:
            table.add_row(
                f"{direction.replace('_', '-')}\n  + {name.replace('_', ' ')}", *(f"{directions[direction][m]:.1f}" for m in METRICS)
            )
    console.print(table)
    if pairs := results.get("pair_accuracy"):
        parts = [f"{d.replace('_', '-')} {pairs[d]['accuracy']:.1f}% ({_interval(pairs[d]['interval'])})" for d in DIRECTIONS]
        console.print(f"twin pairs told apart ({pairs['pairs']} pairs, chance 50%): {', '.join(parts)}")
    console.print(f"trained parameters: {results['trained_parameters']:,} ({100 * results['trained_share']:.2f}% of the model)")
    console.print(f"checkpoint: {results['checkpoint']} ({results['selection']}), {results['seconds']:.1f} s", soft_wrap=True)


def _interval(bounds: list[float]) -> str:
    return f"{bounds[0]:.1f}-{bounds[1]:.1f}"
