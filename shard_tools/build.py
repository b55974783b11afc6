"""Build WebDataset shards from video files, a Ray task a shard. The only Ray driver of shard_tools.

    python shard_tools/build.py --config configs/shards/quickstart.yaml [key.path=value ...]
    ray job submit --working-dir . -- python shard_tools/build.py --config configs/shards/quickstart.yaml

Uses the cluster of the job or of RAY_ADDRESS, else a Ray of its own on this machine. Local paths must
mean the same on every node.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from dgl_scale.config import ShardsConfig
from dgl_scale.config_file import load_config
from dgl_scale.entry import config_parser, parse_arguments, run_command, show_config
from dgl_scale.errors import ConfigError, DglError, ExitCode, Interrupted
from dgl_scale.ray_cluster import ray_cluster
from shard_tools.submit_folder import resolve_paths

if TYPE_CHECKING:
    from shard_tools.annotations.videos import AnnotatedVideo
    from shard_tools.build_record import BuildRecord
    from shard_tools.plan import ShardPlan
    from shard_tools.writer import ShardSummary

_MAX_RETRIES = 3
_POLL_S = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_CANCEL_TIMEOUT_S = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns an exit code; see `ExitCode`."""
    parser = config_parser("build", "Build WebDataset shards from video files.")
    parser.add_argument("--num-cpus", type=int, metavar="N", help="CPUs of the local Ray (default: all)")
    arguments = parse_arguments(parser, argv)

    def work() -> int:
        config = load_config(ShardsConfig, arguments.config, arguments.overrides)
        if arguments.show_config:
            return show_config(config)
        with _stop_on_signals():
            return build(config, arguments.num_cpus)

    return run_command(work, debug=arguments.debug)


def build(config: ShardsConfig, num_cpus: int | None = None) -> int:
    """Build all shards that are missing, then lists and record.

    Args:
        config: as written; relative paths mean the submitter's folder.
        num_cpus: of a local Ray; None: all.

    Returns:
        `ExitCode.DONE`.

    Raises:
        ConfigError: wrong config, or an output folder of another config.
        DglError: annotations or output cannot be used, Ray fails, or, at the end, more than
            `max_failed_fraction` of the videos failed.
    """
    # pyarrow, webdataset and what they bring are loaded here, so that --help and --show-config are instant.
    from shard_tools.annotations.reader import read_annotations
    from shard_tools.build_record import BuildRecord, write_shard_lists
    from shard_tools.plan import annotations_sha256, plan_shards

    resolved = resolve_paths(config)
    output = Path(resolved.output)
    if resolved.output != config.output:
        sys.stderr.write(f"output folder {output}\n")
    videos = list(read_annotations(resolved))
    plans = plan_shards(videos, config.dataset, config.max_samples_per_shard, config.shuffle_seed, config.splits)
    record = BuildRecord(output, config, annotations_sha256(videos))
    with _only_builder(output):
        record.begin()
        shards = _build_missing(plans, resolved, output, num_cpus)
        for split in sorted({plan.split for plan in plans}):
            write_shard_lists(output / split, [shard for shard in shards if shard.split == split])
        return _finish(record, shards, resolved, _count_extra(resolved, videos))


def _count_extra(config: ShardsConfig, videos: Sequence[AnnotatedVideo]) -> int:
    from shard_tools.annotations.folder import video_files

    annotated = {os.path.normpath(video.path) for video in videos}
    return sum(path not in annotated for path in video_files(Path(config.videos)))


def _build_missing(plans: Sequence[ShardPlan], config: ShardsConfig, output: Path, num_cpus: int | None) -> list[ShardSummary]:
    from shard_tools.writer import finished_shard

    summaries = {plan.name: finished_shard(plan, output) for plan in plans}
    missing = [plan for plan in plans if summaries[plan.name] is None]
    if len(missing) < len(plans):
        sys.stderr.write(f"{len(plans) - len(missing)} of {len(plans)} shards are complete already\n")
    if missing:
        with _ray(num_cpus, config.cpus_per_task):
            summaries.update({summary.name: summary for summary in _run_tasks(missing, config, output)})
    return [summary for summary in summaries.values() if summary is not None]


def _run_tasks(plans: Sequence[ShardPlan], config: ShardsConfig, output: Path) -> list[ShardSummary]:
    """Build shards in Ray tasks; on any error, cancel those that run."""
    import ray

    from shard_tools.build_progress import show_progress
    from shard_tools.writer import build_shard

    task = ray.remote(num_cpus=config.cpus_per_task, max_retries=_MAX_RETRIES)(build_shard)
    waiting = iter(plans)
    pending: dict[Any, str] = {}
    finished: list[ShardSummary] = []
    with show_progress(sum(len(plan.samples) for plan in plans)) as advance:
        try:
            while len(finished) < len(plans):
                for plan in itertools.islice(waiting, config.max_tasks_in_flight - len(pending)):
                    pending[task.options(name=plan.name).remote(plan, config, output)] = plan.name
                for reference in ray.wait(list(pending), timeout=_POLL_S)[0]:
                    finished.append(_result(reference, pending.pop(reference)))
                    advance(finished[-1])
        finally:
            _cancel(list(pending))
    return finished


def _result(reference: Any, name: str) -> ShardSummary:
    import ray

    try:
        summary: ShardSummary = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DglError):
            raise error.cause from error
        raise DglError(f"shard {name} failed: {type(error.cause).__name__}: {error.cause}") from error
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise DglError(
            f"the worker of shard {name} died {_MAX_RETRIES + 1} times ({reason}); run the same command again to go on"
        ) from error
    return summary


def _cancel(references: list[Any]) -> None:
    import ray

    if not references:
        return
    for reference in references:
        ray.cancel(reference, force=True)
    # Their temporary files can be removed only when nobody writes to them any more.
    ray.wait(references, num_returns=len(references), timeout=_CANCEL_TIMEOUT_S)


def _finish(record: BuildRecord, shards: Sequence[ShardSummary], config: ShardsConfig, num_extra: int) -> int:
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
    sys.stdout.write(
        f"{len(shards)} shards, {samples} samples, {failed} failed{f' ({reasons})' if reasons else ''}, "
        f"{num_extra} video files without annotation, {sum(shard.bytes for shard in shards):,} bytes in {config.output}\n"
    )
    if too_many:
        raise DglError(
            f"{failed} of {samples + failed} videos failed ({reasons}), more than max_failed_fraction {config.max_failed_fraction:g}; "
            f"the Parquet files in {config.output} say why; the good shards stay"
        )
    if low:
        raise DglError(f"{low}; the Parquet files in {config.output} name the missing ones; the good shards stay")
    return ExitCode.DONE


@contextlib.contextmanager
def _ray(num_cpus: int | None, cpus_per_task: float) -> Iterator[None]:
    """Ray, with this command's signal handlers."""
    if os.environ.get("RAY_ADDRESS") and num_cpus is not None:
        raise ConfigError("--num-cpus is for a local Ray, and RAY_ADDRESS names a cluster; unset one of them")
    num_cpus = num_cpus or os.cpu_count() or 1
    if not os.environ.get("RAY_ADDRESS") and num_cpus < cpus_per_task:
        raise ConfigError(f"cpus_per_task {cpus_per_task:g} is more than the {num_cpus} CPUs of the local Ray")
    with ray_cluster(num_cpus):
        # ray.init replaces the handler of SIGTERM.
        _handle_signals()
        yield


@contextlib.contextmanager
def _only_builder(output: Path) -> Iterator[None]:
    """Hold the output folder, and leave no temporary file of a killed worker in it.

    Raises:
        DglError: the folder cannot be made, or another build holds it.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output, os.O_RDONLY)
    except OSError as error:
        raise DglError(f"cannot write {output}: {error.strerror or error}; choose another output folder") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_temporary(output)
        try:
            yield
        finally:
            _remove_temporary(output)
    except BlockingIOError as error:
        raise DglError(f"another build is writing to {output}; wait for it or choose another output") from error
    finally:
        os.close(descriptor)


def _remove_temporary(output: Path) -> None:
    for pattern in (".*.json.*.tmp", "*/.*.json.*.tmp", "*/.*.tar.*.tmp", "*/.*.parquet.*.tmp"):
        for path in output.glob(pattern):
            path.unlink(missing_ok=True)


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
