"""The main table of a report for spreadsheets and papers: CSV, and LaTeX with booktabs."""

import csv
import io
from collections.abc import Sequence

from dgl_scale.evaluation.report import DIRECTION_NAMES, ReportRow, ReportTable
from dgl_scale.evaluation.retrieval import DIRECTIONS

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def tables_csv(tables: Sequence[ReportTable]) -> str:
    """A line for each evaluation and direction, every metric with the bounds of its 95% interval, full precision."""
    metrics = list(dict.fromkeys(metric for table in tables for metric in table.metrics))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    bounds = [column for metric in metrics for column in (metric, f"{metric} low", f"{metric} high")]
    writer.writerow(["queries", "model", "trained_parameters", "direction", *bounds, "RSum", "RSum low", "RSum high"])
    for table in tables:
        for row in table.rows:
            for direction in DIRECTIONS:
                values = getattr(row, direction)
                cells = [cell for metric in metrics for cell in (values.get(metric, ""), *values.get("interval", {}).get(metric, ("", "")))]
                total = ["" if row.recall_sum is None else row.recall_sum, *(row.recall_sum_interval or ("", ""))]
                writer.writerow([table.label, row.name, row.trained_parameters, direction, *cells, *total])
    return stream.getvalue()


def tables_latex(tables: Sequence[ReportTable]) -> str:
    r"""A `tabular` for each set of queries, to \input into a paper that loads booktabs; intervals in small figures."""
    return "\n".join(_tabular(table) for table in tables)


def _tabular(table: ReportTable) -> str:
    metrics = table.metrics
    heads = [f"\\multicolumn{{{len(metrics)}}}{{c}}{{{DIRECTION_NAMES[direction]}}}" for direction in DIRECTIONS]
    lines = [
        f"% {table.label}; 95% intervals in brackets; needs \\usepackage{{booktabs}}",
        f"\\begin{{tabular}}{{l r {'r' * len(metrics)} {'r' * len(metrics)}}}",
        r"\toprule",
        f" & & {' & '.join(heads)} \\\\",
        f"Model & Trained & {' & '.join(metrics * len(DIRECTIONS))} \\\\",
        r"\midrule",
        *(_latex_row(table, row) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _latex_row(table: ReportTable, row: ReportRow) -> str:
    cells = [_escape(row.name), f"{row.trained_parameters:,}"]
    for direction in DIRECTIONS:
        values = getattr(row, direction)
        for metric in table.metrics:
            cell = f"{values[metric]:.1f}" if metric in values else "--"
            if metric in values and table.is_best(row, direction, metric):
                cell = f"\\textbf{{{cell}}}"
            if metric in values.get("interval", {}):
                low, high = values["interval"][metric]
                cell += f" {{\\scriptsize [{low:.1f}, {high:.1f}]}}"
            cells.append(cell)
    return " & ".join(cells) + r" \\"


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
