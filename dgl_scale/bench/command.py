"""`dgl-scale bench NAME`: measures a claim of speed beside its rival or its limit, in the same run."""

import importlib
import os
import sys
from collections.abc import Sequence

from dgl_scale.errors import ExitCode

# Claim to (module with `main(argv) -> int`, what it measures).
_BENCHMARKS = {
    "evaluation": ("dgl_scale.bench.evaluation", "videos a second of evaluation workers, beside the model's bare forward"),
    "gather": ("dgl_scale.bench.gather", "gathering the features of all ranks: bytes and time by their number, beside a bare all-gather"),
    "model": ("dgl_scale.bench.model", "a training step of DGL: speed, share of the machine's matrix rate, memory; or an estimate of them"),
    "ranking": ("dgl_scale.bench.ranking", "exact ranks of both directions beside the bare matrix product and other ways to rank"),
    "reader": ("dgl_scale.bench.reader", "training batches a second beside bare JPEG decoding, and beside webdataset's usual pipeline"),
    "start-up": ("dgl_scale.bench.start_up", "reading and time of a run's start on simulated ranks, by their number"),
    "training": ("dgl_scale.bench.training", "bytes that a training step sends over the network, per ZeRO stage, beside a formula"),
}
# A process of its own, as all shard tools: dgl_scale does not depend on them.
_SHARD_BENCHMARKS: dict[str, tuple[str, str]] = {
    "shards": ("shard_tools.bench", "clips a second of a shard build beside the bare decoder, and beside ffmpeg with ShardWriter"),
    "plan": ("shard_tools.bench_plan", "planning the shards of millions of videos: time, memory, disk"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in {"-h", "--help"}:
        sys.stdout.write(_usage())
        return ExitCode.DONE if words else ExitCode.USAGE
    if words[0] in _SHARD_BENCHMARKS:
        os.execv(sys.executable, [sys.executable, "-m", _SHARD_BENCHMARKS[words[0]][0], *words[1:]])  # noqa: S606
    if words[0] not in _BENCHMARKS:
        sys.stderr.write(f"error: unknown benchmark {words[0]}; known: {', '.join(sorted(_BENCHMARKS | _SHARD_BENCHMARKS))}\n")
        return ExitCode.USAGE
    return int(importlib.import_module(_BENCHMARKS[words[0]][0]).main(words[1:]))


def _usage() -> str:
    rows = sorted((_BENCHMARKS | _SHARD_BENCHMARKS).items())
    lines = "\n".join(f"  {name:<11} {text}" for name, (_, text) in rows)
    return f"usage: dgl-scale bench NAME …\n\n{lines}\n\n`dgl-scale bench NAME --help` explains one.\n"
