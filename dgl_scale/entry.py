"""What all commands share: config arguments, one-line errors, exit codes."""

import argparse
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from dgl_scale.config_file import dump_config
from dgl_scale.config_section import Section
from dgl_scale.errors import ConfigError, DglError, ExitCode


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """End with exit code 2 and one line."""
        sys.stderr.write(f"error: {message} (see {self.prog} --help)\n")
        raise SystemExit(ExitCode.USAGE)


def positive_int(text: str) -> int:
    """The type of an argument that is a positive whole number."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def positive_ints(text: str) -> list[int]:
    """The type of an argument that is one positive whole number, or several with commas between."""
    return [positive_int(word) for word in text.split(",")]


def positive_number(text: str) -> float:
    """The type of an argument that is a positive number."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return number


def config_parser(prog: str, description: str) -> Parser:
    """A parser with what every engine command takes: `--config C [key.path=value ...]`."""
    parser = Parser(
        prog=prog, description=description, epilog="exit codes: 0 done, 1 failed work, 2 wrong usage or config, 75 interrupted, resume"
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML config file")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="overrides of single config values")
    parser.add_argument("--show-config", action="store_true", help="print the resolved config and stop")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    # The deepspeed launcher appends this to every script it starts.
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)
    return parser


def parse_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse, allowing overrides before, between and after options."""
    arguments = parser.parse_intermixed_args(argv)
    for override in arguments.overrides:
        if "=" not in override:
            parser.error(f"unexpected argument {override!r}; overrides have the form key.path=value")
    return arguments


def show_config(config: Section) -> int:
    """Print the resolved config, for `--show-config`."""
    sys.stdout.write(dump_config(config))
    return ExitCode.DONE


def run_command(work: Callable[[], int], *, debug: bool) -> int:
    """Call `work` and turn its errors into one line on stderr and an exit code.

    A `DglError` is the user's to mend; anything else is a defect of ours, said so in one line too.
    """
    try:
        return int(work())
    except DglError as error:
        # Wrong usage is the same on every rank of a launch: one says it.
        is_common = error.is_on_all_ranks or error.exit_code == ExitCode.USAGE
        if not is_common or os.environ.get("RANK", "0") == "0":
            _complain(str(error), debug)
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return ExitCode.INTERRUPTED
    except Exception as error:
        _complain(f"unexpected {type(error).__name__}: {error} (run again with --debug for the traceback)", debug)
        return ExitCode.FAILED


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(`message`) unless `condition`."""
    if not condition:
        raise ConfigError(message)


def _complain(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
