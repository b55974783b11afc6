"""`dgl-scale report RUN [--output FILE]`: the HTML report of a run."""

import sys
from collections.abc import Sequence
from pathlib import Path

from dgl_scale.entry import Parser, run_command
from dgl_scale.errors import DataError, ExitCode


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, write the report, print its path; returns the exit code."""
    parser = Parser(prog="dgl-scale report", description="Write the HTML report of a run's evaluations: one file, no network needed.")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder that has been evaluated")
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: RUN/report.html")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)

    def work() -> int:
        # Imported here so that --help stays instant.
        from dgl_scale.evaluation.run_report import report_run

        if not arguments.run.is_dir():
            raise DataError(f"no run folder {arguments.run}; give the folder that train.py or evaluate.py wrote")
        output = arguments.output or arguments.run / "report.html"
        report_run(arguments.run, output)
        sys.stdout.write(f"report: {output}\n")
        return ExitCode.DONE

    return run_command(work, debug=arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
