"""`dgl-scale doctor`: checks what a run needs of its machine, its output folder and its hosts, and says what to mend."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from dgl_scale.config import RunConfig
from dgl_scale.config_file import load_config
from dgl_scale.doctor.finding import Finding
from dgl_scale.entry import Parser, run_command
from dgl_scale.errors import ExitCode


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check, print a table; 1 where something fails."""
    parser = Parser(prog="dgl-scale doctor", description="Check this machine, an output folder and the hosts of a launch.")
    parser.add_argument(
        "--config", metavar="FILE", help="a run's config: its batches are held against shared memory, its output is checked"
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder of run folders to check (default: the config's, else runs)")
    parser.add_argument("--hostfile", type=Path, metavar="FILE", help="the hosts of `deepspeed --hostfile`: each is asked by ssh")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments), debug=arguments.debug)


def _run(arguments: Namespace) -> int:
    config = load_config(RunConfig, arguments.config) if arguments.config else None
    output = arguments.output or Path(config.output if config else "runs")
    findings = []
    for finding in _examine(config, output.expanduser(), arguments.hostfile):
        findings.append(finding)
        if not arguments.json:
            sys.stdout.write(_row(finding))
            sys.stdout.flush()
    failed = sum(finding.status == "fail" for finding in findings)
    warned = sum(finding.status == "warn" for finding in findings)
    if arguments.json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        sys.stdout.write(f"\n{len(findings)} checks, {warned} warnings, {failed} failures\n")
    return ExitCode.FAILED if failed else ExitCode.DONE


def _examine(config: RunConfig | None, output: Path, hostfile: Path | None) -> Iterator[Finding]:
    # Imported here so that --help stays instant.
    from dgl_scale.doctor.folder import check_folder
    from dgl_scale.doctor.machine import check_machine
    from dgl_scale.doctor.network import check_hosts, check_ports

    # First, since a host that is not there is what keeps a launch waiting.
    if hostfile is not None:
        yield from check_hosts(hostfile)
    yield from check_ports()
    yield from check_folder(output)
    yield from check_machine(config)


def _row(finding: Finding) -> str:
    advice = f"\n{'':<24}-> {finding.advice}" if finding.advice else ""
    return f"{finding.status:<6}{finding.subject:<18}{finding.found}{advice}\n"
