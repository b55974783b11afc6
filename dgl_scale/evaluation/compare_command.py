"""`dgl-scale compare A B`: is one evaluation better than another, and at what."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgl_scale.entry import Parser, positive_int, run_command
from dgl_scale.errors import ExitCode

_COLUMNS = ("", "queries", "metric", "A", "B", "A - B", "95% interval", "p (bootstrap)", "p (permutation)", "won", "lost", "tied")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, compare, print; returns the exit code."""
    parser = Parser(
        prog="dgl-scale compare",
        description="Two evaluations of the same queries: paired bootstrap and permutation test by video, queries that A won and lost.",
    )
    parser.add_argument("a", metavar="A", type=Path, help="evaluation folder, or its ranks.parquet")
    parser.add_argument("b", metavar="B", type=Path, help="the one to compare with")
    parser.add_argument("--samples", type=positive_int, default=2000, help="resamples, and permutations")
    parser.add_argument("--seed", type=int, default=0)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)

    def work() -> int:
        # Imported here so that --help stays instant.
        from dgl_scale.evaluation.compare import compare_evaluations

        result = compare_evaluations(arguments.a, arguments.b, samples=arguments.samples, seed=arguments.seed)
        if arguments.json:
            text = json.dumps(result, indent=2) + "\n"
        else:
            text = f"A: {arguments.a}\nB: {arguments.b}\n\n" + _table(_rows(result), markdown=arguments.markdown)
        sys.stdout.write(text)
        return ExitCode.DONE

    return run_command(work, debug=arguments.debug)


def _rows(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for direction, figures in result.items():
        name = direction.replace("_", "-")
        rows += [_row(name if metric == "R@1" else "", metric, figures) for metric in figures if metric.startswith("R@")]
        rows += [_row(f"  {category}", "R@1", own) for category, own in figures["categories"].items()]
    return rows


def _row(name: str, metric: str, figures: dict[str, Any]) -> list[str]:
    found = figures[metric]
    counts = [str(figures[key]) for key in ("won", "lost", "tied")] if metric == "R@1" else ["", "", ""]
    return [
        name,
        str(figures["queries"]),
        metric,
        f"{found['a']:.1f}",
        f"{found['b']:.1f}",
        f"{found['difference']:+.1f}",
        f"{found['interval'][0]:+.1f} to {found['interval'][1]:+.1f}",
        f"{found['p_bootstrap']:.2g}",
        f"{found['p_permutation']:.2g}",
        *counts,
    ]


def _table(rows: Sequence[Sequence[str]], *, markdown: bool) -> str:
    if markdown:
        lines = [_COLUMNS, ["---"] + ["--:"] * (len(_COLUMNS) - 1), *([cell.strip() for cell in row] for row in rows)]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)
    widths = [max(len(line[i]) for line in (_COLUMNS, *rows)) for i in range(len(_COLUMNS))]

    def aligned(line: Sequence[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        return "  ".join([line[0].ljust(widths[0]), *cells[1:]]).rstrip() + "\n"

    return "".join(aligned(line) for line in (_COLUMNS, *rows))


if __name__ == "__main__":
    sys.exit(main())
