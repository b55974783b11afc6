"""Build WebDataset shards from video files, a Ray task a shard. The only Ray driver of shard_tools.

    python shard_tools/build.py --config configs/shards/quickstart.yaml [key.path=value ...]
    ray job submit --working-dir . -- python shard_tools/build.py --config configs/shards/quickstart.yaml

Uses the cluster of the job or of RAY_ADDRESS, else a Ray of its own on this machine. Local paths must
mean the same on every node; inputs may be s3://, gs:// and http(s):// URLs, the output s3:// or gs://.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from dgl_scale.config_file import load_config
from dgl_scale.entry import config_parser, parse_arguments, positive_int, positive_number, run_command, show_config
from dgl_scale.errors import ConfigError, DglError, ExitCode, Interrupted
from dgl_scale.ray_cluster import ray_cluster, remove_abandoned
from dgl_scale.shards_config import ShardsConfig
from dgl_scale.storage.urls import Location, is_url, join, public_url
from shard_tools.estimate import Assumptions, estimate_lines
from shard_tools.output_folder import only_builder
from shard_tools.public_config import public_config
from shard_tools.submit_folder import resolve_paths

if TYPE_CHECKING:
    from dgl_scale.storage.storage import Storage
    from shard_tools.build_record import BuildRecord
    from shard_tools.finished import ShardSummary
    from shard_tools.inputs import UnannotatedFiles
    from shard_tools.plan import Plan, ShardPlan

_MAX_RETRIES = 3
_POLL_S = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Options of `--estimate` that are fields of `Assumptions`.
_ASSUMPTIONS = ("samples", "clip_seconds", "source_size", "frame_bytes")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns an exit code; see `ExitCode`."""
    parser = config_parser("build", "Build WebDataset shards from video files.")
    parser.add_argument("--num-cpus", type=int, metavar="N", help="CPUs of the local Ray (default: all)")
    parser.add_argument(
        "--retry-failed", action="store_true", help="try failed videos again; rewrite the shards of those that are good now"
    )
    group = parser.add_argument_group("estimate", "shards, bytes and time by arithmetic; no video is opened, --num-cpus are the cluster's")
    group.add_argument("--estimate", action="store_true", help="print it and stop")
    group.add_argument("--samples", type=positive_int, metavar="N", help="videos of all splits")
    group.add_argument("--clip-seconds", type=positive_number, metavar="S", help="length of a video (default 15)")
    group.add_argument("--source-size", type=_frame_size, metavar="WxH", help="pixels of the videos (default 320x240)")
    group.add_argument("--frame-bytes", type=positive_number, metavar="N", help="of a stored frame (default: by its pixels)")
    arguments = parse_arguments(parser, argv)
    assumed = {name: value for name in _ASSUMPTIONS if (value := getattr(arguments, name)) is not None}
    if bool(arguments.estimate) != ("samples" in assumed) or (assumed and not arguments.estimate):
        parser.error("--estimate needs --samples" if arguments.estimate else f"--{next(iter(assumed)).replace('_', '-')} is for --estimate")

    def work() -> int:
        config = load_config(ShardsConfig, arguments.config, arguments.overrides)
        if arguments.show_config:
            return show_config(public_config(config))
        if arguments.estimate:
            estimate = Assumptions(**assumed, num_cpus=arguments.num_cpus or 1)
            sys.stdout.writelines(f"{line}\n" for line in estimate_lines(config, estimate))
            return ExitCode.DONE
        with _stop_on_signals():
            return build(config, arguments.num_cpus, arguments.retry_failed)

    return run_command(work, debug=arguments.debug)


def _frame_size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is no frame size such as 640x360")
    return int(width), int(height)


def build(config: ShardsConfig, num_cpus: int | None = None, retry_failed: bool = False) -> int:
    """Build all shards that are missing, then lists and record.

    Args:
        config: as written; relative paths mean the submitter's folder.
        num_cpus: of a local Ray; None: all.
        retry_failed: try the failed videos of finished shards again, too.

    Returns:
        `ExitCode.DONE`.

    Raises:
        ConfigError: wrong config, or an output folder of another config.
        DglError: annotations or output cannot be used, Ray fails, or, at the end, more than
            `max_failed_fraction` of the videos failed.
    """
    # pyarrow, webdataset and what they bring are loaded here, so that --help and --show-config are instant.
    from dgl_scale.storage.storage import Storage
    from shard_tools.annotations.reader import read_annotations
    from shard_tools.build_record import BuildRecord, write_shard_lists
    from shard_tools.inputs import UnannotatedFiles, check_places, local_annotations
    from shard_tools.plan import plan_shards

    resolved = resolve_paths(config)
    storage = Storage(resolved.storage)
    check_places(resolved, storage)
    if resolved.output != config.output:
        sys.stderr.write(f"output folder {resolved.output}\n")
    unannotated = UnannotatedFiles(resolved.storage.scratch)
    with local_annotations(resolved, storage) as local:
        videos = unannotated.watch(read_annotations(local))
        arguments = (config.max_samples_per_shard, config.shuffle_seed, config.splits, resolved.storage.scratch)
        plan = plan_shards(videos, config.dataset, *arguments)
    record = BuildRecord(resolved.output, config, plan.annotations_sha256, storage)
    with contextlib.closing(plan), only_builder(resolved.output):
        remove_abandoned()
        record.begin()
        shards = _build_missing(plan, resolved, storage, record, num_cpus, retry_failed)
        for split in plan.splits:
            write_shard_lists(join(resolved.output, split), [shard for shard in shards if shard.split == split], storage)
        return _finish(record, shards, resolved, _count_extra(resolved, unannotated))


def _count_extra(config: ShardsConfig, unannotated: UnannotatedFiles) -> int | None:
    from shard_tools.annotations.folder import video_files

    # Of what a server holds, nobody may be able to see a list.
    return None if is_url(config.videos) else unannotated.count(video_files(Path(config.videos)))


def _build_missing(
    plan: Plan, config: ShardsConfig, storage: Storage, record: BuildRecord, num_cpus: int | None, retry_failed: bool
) -> list[ShardSummary]:
    from shard_tools.finished import find_finished
    from shard_tools.writer import build_shard, retry_shard

    shards = find_finished(plan, config.output, storage)
    complete = [summaries for summaries in shards if summaries is not None]
    if complete:
        sys.stderr.write(f"{len(complete)} of {len(shards)} shards are complete already\n")
    missing = [i for i, summaries in enumerate(shards) if summaries is None or (retry_failed and any(s.num_failed for s in summaries))]
    if missing:
        record.reopen()
        with _ray(num_cpus, config.cpus_per_task):
            for i, summaries in _run_tasks(retry_shard if retry_failed else build_shard, plan, missing, config):
                shards[i] = summaries
    if retry_failed:
        _say_mended([shard for summaries in shards for shard in summaries or ()], sum(s.num_failed for each in complete for s in each))
    return [shard for summaries in shards for shard in summaries or ()]


def _say_mended(shards: Sequence[ShardSummary], failed_before: int) -> None:
    for shard in shards:
        if shard.mended:
            sys.stderr.write(f"{shard.name} rewritten, now with {', '.join(shard.mended)}\n")
    sys.stderr.write(f"{sum(len(shard.mended) for shard in shards)} of {failed_before} failed videos are samples now\n")


def _run_tasks(
    work: Callable[[ShardPlan, ShardsConfig, Location], list[ShardSummary]], plan: Plan, numbers: Sequence[int], config: ShardsConfig
) -> Iterator[tuple[int, list[ShardSummary]]]:
    """Number and summaries of each shard as its Ray task ends.

    On any error those that run are left to Ray, which ends them when this process leaves it: in Ray 2.60 cancelling a task that
    ends at that moment aborts the process that cancels.
    """
    import ray

    from shard_tools.build_progress import show_progress

    task = ray.remote(num_cpus=config.cpus_per_task, max_retries=_MAX_RETRIES)(work)
    waiting = iter(numbers)
    pending: dict[Any, tuple[int, str]] = {}
    with show_progress(plan.num_videos_of(numbers)) as advance:
        while True:
            for number in itertools.islice(waiting, config.max_tasks_in_flight - len(pending)):
                shard = plan[number]
                pending[task.options(name=shard.name).remote(shard, config, config.output)] = (number, shard.name)
            if not pending:
                return
            for reference in ray.wait(list(pending), timeout=_POLL_S)[0]:
                number, name = pending.pop(reference)
                summaries = _result(reference, name)
                advance(summaries)
                yield number, summaries


def _result(reference: Any, name: str) -> list[ShardSummary]:
    import ray

    try:
        summaries: list[ShardSummary] = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DglError):
            raise error.cause from error
        raise DglError(f"shard {name} failed: {type(error.cause).__name__}: {error.cause}") from error
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise DglError(
            f"the worker of shard {name} died {_MAX_RETRIES + 1} times ({reason}); run the same command again to go on"
        ) from error
    return summaries


def _finish(record: BuildRecord, shards: Sequence[ShardSummary], config: ShardsConfig, num_extra: int | None) -> int:
    from shard_tools.coverage import coverage_by_split, low_coverage

    statuses: Counter[str] = Counter()
    for shard in shards:
        statuses.update(shard.statuses)
    samples, failed = sum(shard.num_samples for shard in shards), sum(shard.num_failed for shard in shards)
    too_many = failed > config.max_failed_fraction * (samples + failed)
    covered = coverage_by_split(shards)
    low = low_coverage(covered, config.require_coverage)
    record.end("too_many_failed" if too_many else "low_coverage" if low else "complete", shards, num_extra)
    sys.stdout.writelines(f"{split}: {coverage}\n" for split, coverage in covered.items())
    reasons = ", ".join(f"{number} {status}" for status, number in sorted(statuses.items()) if status != "ok")
    extra = "" if num_extra is None else f"{num_extra} video files without annotation, "
    sys.stdout.write(
        f"{len(shards)} shards, {samples} samples, {failed} failed{f' ({reasons})' if reasons else ''}, "
        f"{extra}{sum(shard.bytes for shard in shards):,} bytes in {public_url(config.output)}\n"
    )
    if too_many:
        raise DglError(
            f"{failed} of {samples + failed} videos failed ({reasons}), more than max_failed_fraction {config.max_failed_fraction:g}; "
            f"the Parquet files in {public_url(config.output)} say why; the good shards stay; "
            "build again with --retry-failed once they are mended"
        )
    if low:
        raise DglError(f"{low}; the Parquet files in {public_url(config.output)} name the missing ones; the good shards stay")
    return ExitCode.DONE


@contextlib.contextmanager
def _ray(num_cpus: int | None, cpus_per_task: float) -> Iterator[None]:
    """Ray, of this machine or of a cluster."""
    if os.environ.get("RAY_ADDRESS") and num_cpus is not None:
        raise ConfigError("--num-cpus is for a local Ray, and RAY_ADDRESS names a cluster; unset one of them")
    num_cpus = num_cpus or os.cpu_count() or 1
    if not os.environ.get("RAY_ADDRESS") and num_cpus < cpus_per_task:
        raise ConfigError(f"cpus_per_task {cpus_per_task:g} is more than the {num_cpus} CPUs of the local Ray")
    with ray_cluster(num_cpus):
        yield


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into `Interrupted`."""
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    _handle_signals()
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted; complete shards stay, run the same command again to go on") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in previous.items():
                signal.signal(number, handler)


def _handle_signals() -> None:
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    # Cleaning up takes seconds; a second signal must not cut it short.
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
