"""Evaluate retrieval: `python dgl_scale/evaluate.py --config C --checkpoint RUN|STEP|prompts.safetensors|none [--workers N]`.

Ray workers encode the split; ranks, metrics and their intervals go to `runs/<name>/evaluation/`.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

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
        help="a run folder (its best checkpoint, else its newest), a step folder, a prompts file; none: frozen CLIP",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="Ray actors; same as evaluation.num_workers=N")
    parser.add_argument("--split", choices=("test", "validation"), help="same as evaluation.split=…")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one")
    arguments = parse_arguments(parser, argv)

    def work() -> int:
        config = load_config(RunConfig, arguments.config, [*arguments.overrides, *_as_overrides(arguments)])
        if arguments.show_config:
            return show_config(config)
        require(
            arguments.checkpoint is not None,
            "--checkpoint is missing: a run folder, a step folder, a prompts file, or none for the frozen CLIP",
        )
        _evaluate(config, arguments.checkpoint, arguments.device, list(sys.argv[1:] if argv is None else argv))
        return ExitCode.DONE

    return run_command(work, debug=arguments.debug)


def _as_overrides(arguments: argparse.Namespace) -> list[str]:
    overrides = [] if arguments.workers is None else [f"evaluation.num_workers={arguments.workers}"]
    return overrides if arguments.split is None else [*overrides, f"evaluation.split={arguments.split}"]


def _evaluate(config: RunConfig, checkpoint_argument: str, device: str, argv: list[str]) -> None:
    # Imported here so that --help and --show-config stay instant.
    from dgl_scale.evaluation.run import evaluate_checkpoint
    from dgl_scale.evaluation.tables import print_results

    folder, results = evaluate_checkpoint(
        config, checkpoint_argument, device, command=["dgl_scale/evaluate.py", *argv], progress=_show_progress()
    )
    print_results(results)
    sys.stdout.write(f"results: {folder}\n")


def _show_progress() -> "Progress":
    """A line on stderr at the start, every ten seconds and at the end."""
    from dgl_scale.telemetry import say

    started = last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last > _SECONDS_BETWEEN_LINES:
            last = now
            say(f"encoded {done} of {total} videos in {now - started:.0f} s")

    return show


_SECONDS_BETWEEN_LINES = 10.0

if __name__ == "__main__":
    sys.exit(main())
