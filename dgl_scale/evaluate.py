"""Evaluate retrieval: `python dgl_scale/evaluate.py --config C --checkpoint RUN|STEP|prompts.safetensors|none [--workers N]`.

Ray workers encode the split; ranks, metrics and their intervals go to `runs/<name>/evaluation/`. With `--watch RUN` instead of
`--checkpoint`, each checkpoint of a run is evaluated while training goes on.
"""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dgl_scale.config import RunConfig
from dgl_scale.config_file import load_config
from dgl_scale.entry import config_parser, parse_arguments, require, run_command, show_config
from dgl_scale.errors import ExitCode

if TYPE_CHECKING:
    from dgl_scale.evaluation.encoding import Progress


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, evaluate, print the table; returns the exit code."""
    parser = config_parser("evaluate", "Evaluate retrieval of a checkpoint, or of the frozen CLIP, with Ray workers.")
    parser.add_argument(
        "--checkpoint",
        metavar="RUN|STEP|FILE|none",
        help="a run folder (its best checkpoint, else its newest) or step folder, or its address; a prompts file; none: frozen CLIP",
    )
    parser.add_argument("--watch", metavar="RUN", help="folder or address of a run: evaluate each of its checkpoints until it is finished")
    parser.add_argument("--workers", type=int, metavar="N", help="Ray actors; same as evaluation.num_workers=N")
    parser.add_argument("--split", choices=("test", "validation"), help="same as evaluation.split=…")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one")
    arguments = parse_arguments(parser, argv)

    def work() -> int:
        config = load_config(RunConfig, arguments.config, [*arguments.overrides, *_as_overrides(arguments)])
        if arguments.show_config:
            return show_config(config)
        require(
            arguments.checkpoint is not None or arguments.watch is not None,
            "--checkpoint is missing: a run folder, a step folder, a prompts file, or none for the frozen CLIP",
        )
        require(arguments.checkpoint is None or arguments.watch is None, "give --checkpoint or --watch, not both")
        command = ["dgl_scale/evaluate.py", *(sys.argv[1:] if argv is None else argv)]
        with _stopping_at_sigterm():
            if arguments.watch is None:
                _evaluate(config, arguments.checkpoint, arguments.device, command)
            else:
                _watch(config, arguments.watch, arguments.device, command)
        return ExitCode.DONE

    return run_command(work, debug=arguments.debug)


def _as_overrides(arguments: argparse.Namespace) -> list[str]:
    overrides = [] if arguments.workers is None else [f"evaluation.num_workers={arguments.workers}"]
    return overrides if arguments.split is None else [*overrides, f"evaluation.split={arguments.split}"]


def _evaluate(config: RunConfig, checkpoint_argument: str, device: str, command: list[str]) -> None:
    # Imported here so that --help and --show-config stay instant.
    from dgl_scale.evaluation.run import evaluate_checkpoint
    from dgl_scale.evaluation.tables import print_results

    folder, results = evaluate_checkpoint(config, checkpoint_argument, device, command=command, progress=_show_progress())
    print_results(results)
    sys.stdout.write(f"results: {folder}\n")


def _watch(config: RunConfig, run: str, device: str, command: list[str]) -> None:
    from dgl_scale.evaluation.retrieval import DIRECTIONS
    from dgl_scale.evaluation.watch import watch

    def announce(results: dict[str, Any]) -> None:
        recalls = ", ".join(f"{direction.replace('_', '-')} R@1 {results[direction]['R@1']:.1f}" for direction in DIRECTIONS)
        sys.stdout.write(f"step {results['step']}: {recalls} ({results['split']}, {results['seconds']:.0f} s)\n")
        sys.stdout.flush()

    watch(config, run, device, command=command, progress=_show_progress(), announce=announce)


@contextmanager
def _stopping_at_sigterm() -> Iterator[None]:
    """A scheduler's SIGTERM ends the block as Ctrl-C does: workers and a private Ray go too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _show_progress() -> "Progress":
    """A line on stderr at the start, every ten seconds and at the end."""
    from dgl_scale.telemetry import say

    started = last = time.monotonic()
    is_new = True

    def show(done: int, total: int) -> None:
        nonlocal started, last, is_new
        now = time.monotonic()
        if is_new:
            started = last = now
        is_new = done == total  # then the next call is of another split or checkpoint
        if done == total or now - last > _SECONDS_BETWEEN_LINES:
            last = now
            say(f"encoded {done} of {total} videos in {now - started:.0f} s")

    return show


_SECONDS_BETWEEN_LINES = 10.0

if __name__ == "__main__":
    sys.exit(main())
