"""`dgl-scale`: one command for all parts; each subcommand only delegates, so that `--help` is instant."""

import importlib
import os
import sys
from collections.abc import Sequence

from dgl_scale import __version__
from dgl_scale.errors import ExitCode

# Subcommand to (module with `main(argv) -> int`, what it does).
_COMMANDS = {
    "quickstart": ("dgl_scale.quickstart.pipeline", "make a small video world, train on it, evaluate, report"),
    "train": ("dgl_scale.train", "train DGL prompts over a frozen CLIP"),
    "evaluate": ("dgl_scale.evaluate", "evaluate a checkpoint on text-video retrieval"),
    "report": ("dgl_scale.evaluation.report_command", "write a run's HTML report"),
    "metrics": ("dgl_scale.evaluation.metrics_command", "retrieval metrics of a similarity matrix"),
    "compare": ("dgl_scale.evaluation.compare_command", "two evaluations of the same queries: which is better, how surely, at what"),
    "prompts": ("dgl_scale.prompts", "look into prompts files; import and export published checkpoints; push and pull"),
    "doctor": ("dgl_scale.doctor.command", "check this machine, an output folder and the hosts of a launch"),
    "bench": ("dgl_scale.bench.command", "measure a claim of speed beside its rival or its limit"),
}
# These run as processes of their own: the shard tools load no torch, and dgl_scale does not depend on them.
_SHARD_TOOLS = {
    "build": "shard_tools.build",
    "verify": "shard_tools.verify",
    "stats": "shard_tools.stats",
    "leakage": "shard_tools.leakage",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in {"-h", "--help"}:
        sys.stdout.write(_usage())
        return ExitCode.DONE if words else ExitCode.USAGE
    if words[0] == "--version":
        sys.stdout.write(f"dgl-scale {__version__}\n")
        return ExitCode.DONE
    if words[0] == "shards":
        return _shards(words[1:])
    if words[0] in _COMMANDS:
        return int(importlib.import_module(_COMMANDS[words[0]][0]).main(words[1:]))
    return _unknown(words[0], [*_COMMANDS, "shards"])


def _shards(words: Sequence[str]) -> int:
    if words and words[0] in _SHARD_TOOLS:
        os.execv(sys.executable, [sys.executable, "-m", _SHARD_TOOLS[words[0]], *words[1:]])  # noqa: S606
    if words and words[0] not in {"-h", "--help"}:
        return _unknown(f"shards {words[0]}", [f"shards {name}" for name in _SHARD_TOOLS])
    sys.stdout.write(
        "usage: dgl-scale shards {build,verify,stats,leakage} …\n\n"
        "  build    video files to WebDataset shards\n"
        "  verify   read all shards back and compare with their hashes\n"
        "  stats    print and draw lengths, captions, sizes and failures\n"
        "  leakage  find videos and captions that two splits share\n"
    )
    return ExitCode.DONE if words else ExitCode.USAGE


def _unknown(name: str, known: Sequence[str]) -> int:
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    sys.stderr.write(f"error: unknown command {name}; {hint}\n")
    return ExitCode.USAGE


def _usage() -> str:
    rows = [(name, text) for name, (_, text) in _COMMANDS.items()]
    rows.insert(1, ("shards", "WebDataset shards: build, verify, stats, leakage"))
    lines = [f"  {name:<11} {text}" for name, text in rows]
    return (
        "usage: dgl-scale COMMAND …\n\nDistributed training of DGL prompts over a frozen CLIP for text-video retrieval.\n\n"
        + "\n".join(lines)
        + "\n\n`dgl-scale COMMAND --help` explains a command."
        + " Exit codes: 0 done, 1 failed work, 2 wrong usage or config, 75 interrupted, resume.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
