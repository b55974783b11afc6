"""`dgl-scale report RUN… [--output FILE]`: one HTML report of some runs, or of several evaluations of one."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dgl_scale.entry import Parser, positive_int, require, run_command
from dgl_scale.errors import ExitCode
from dgl_scale.files import write_text

_DESCRIPTION = "Write one HTML report of the evaluations of some runs, side by side; the file needs no network."

_MAX_NAMES = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, write the report, print its path; returns the exit code."""
    parser = Parser(prog="dgl-scale report", description=_DESCRIPTION)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run folder that was evaluated, or one of its evaluations")
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: report.html in the folder of the first RUN")
    parser.add_argument("--baseline", metavar="RUN", type=Path, help="compare with this one (default: a frozen CLIP, else the first)")
    parser.add_argument("--queries", metavar="N", type=positive_int, help="queries to show at most (default 1000)")
    parser.add_argument("--title", metavar="TEXT", help="default: the names of the runs")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write the main table as CSV too")
    parser.add_argument("--latex", metavar="FILE", type=Path, help="write the main table as LaTeX too, for booktabs")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _write(arguments), debug=arguments.debug)


def _write(arguments: argparse.Namespace) -> int:
    # Imported here so that --help stays instant.
    from dgl_scale.evaluation.query_gallery import MAX_QUERIES
    from dgl_scale.evaluation.report import write_report
    from dgl_scale.evaluation.report_export import tables_csv, tables_latex
    from dgl_scale.evaluation.run_report import build_report, load_evaluations

    evaluations = load_evaluations(arguments.runs)
    baseline = arguments.baseline
    given = {path for one in evaluations for path in (one.folder, one.run_folder)}
    require(
        baseline is None or baseline.resolve() in given,
        f"--baseline {baseline} is none of the runs to report; give it as RUN too",
    )
    runs = list(dict.fromkeys(one.run_folder.name for one in evaluations))
    title = arguments.title or f"Text-video retrieval: {', '.join(runs) if len(runs) <= _MAX_NAMES else f'{len(runs)} runs'}"
    if sys.stderr.isatty():
        sys.stderr.write("reading the clips of the queries; a thousand take about half a minute\n")
    report = build_report(evaluations, title=title, baseline=baseline, max_queries=arguments.queries or MAX_QUERIES)
    written = {"report": arguments.output or arguments.runs[0] / "report.html"}
    write_report(written["report"], report)
    for name, path, text in (("csv", arguments.csv, tables_csv), ("latex", arguments.latex, tables_latex)):
        if path is not None:
            write_text(path, text(report.tables))
            written[name] = path
    for notice in report.notices:
        sys.stderr.write(f"{notice}\n")
    sys.stdout.write("".join(f"{name}: {path}\n" for name, path in written.items()))
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
