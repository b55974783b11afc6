"""The project's commands, taken as far as their own parsers and configs, and no further."""

import argparse
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

from dgl_scale import cli


class Parsed(Exception):
    """Raised in place of the work, once the arguments are parsed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments


class _Executed(Exception):
    def __init__(self, command: Sequence[str]) -> None:
        self.command = command


def run_command_line(words: Sequence[str]) -> None:
    """Run `dgl-scale …`, `python FILE …` or `python -m MODULE …` in this process, programs that it turns into included."""
    program, *rest = words
    with mock.patch.object(os, "execv", _execute):
        try:
            if program == "dgl-scale":
                raise SystemExit(cli.main(rest))
            module, arguments = (rest[1], rest[2:]) if rest[0] == "-m" else (None, rest[1:])
            # As for Python itself, a file's own folder comes first on the path.
            path = sys.path if module else [os.path.dirname(os.path.abspath(rest[0])), *sys.path]
            with mock.patch.object(sys, "argv", [rest[0], *arguments]), mock.patch.object(sys, "path", path):
                if module:
                    runpy.run_module(module, run_name="__main__")
                else:
                    runpy.run_path(rest[0], run_name="__main__")
        except _Executed as executed:
            run_command_line(executed.command)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """What the command's own parser makes of it; SystemExit where it refuses. Of a command with a config, the config is validated too."""
    with ExitStack() as stack:
        for method in ("parse_args", "parse_intermixed_args"):
            original = getattr(argparse.ArgumentParser, method)
            stack.enter_context(mock.patch.object(argparse.ArgumentParser, method, _stopping(original)))
        try:
            run_command_line(words)
        except Parsed as parsed:
            return parsed.arguments
    raise AssertionError(f"{' '.join(words)}: parses no arguments")


def _stopping(original: Callable[..., argparse.Namespace]) -> Callable[..., Any]:
    def parse_and_stop(parser: argparse.ArgumentParser, *arguments: Any) -> Any:
        _refuse_abbreviations(parser)
        raise Parsed(original(parser, *arguments))

    return parse_and_stop


def _refuse_abbreviations(parser: argparse.ArgumentParser) -> None:
    """A documented option that was given a longer name must not pass as its abbreviation."""
    parser.allow_abbrev = False
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                _refuse_abbreviations(subparser)


def _execute(_program: str, command: Sequence[str]) -> None:
    raise _Executed(["python", *command[1:]])
