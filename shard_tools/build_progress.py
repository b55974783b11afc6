"""How far a build is: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shard_tools.finished import ShardSummary

_LINE_EVERY_S = 10.0
Advance = Callable[[Sequence[ShardSummary]], None]


@contextlib.contextmanager
def show_progress(num_videos: int) -> Iterator[Advance]:
    """Yields a function to call with the summaries of each finished shard.

    Args:
        num_videos: to be worked on.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line_writer(num_videos)
        return
    columns = (
        TextColumn("building"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("videos, {task.fields[failed]} failed, {task.fields[rate]:.1f} videos/s,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as progress:
        begin = time.monotonic()
        task = progress.add_task("", total=num_videos, failed=0, rate=0.0)

        def advance(shards: Sequence[ShardSummary]) -> None:
            done, failed = _count(shards)
            before = progress.tasks[0]
            rate = (before.completed + done) / max(time.monotonic() - begin, 1e-6)
            progress.update(task, advance=done, failed=before.fields["failed"] + failed, rate=rate)

        yield advance


def _line_writer(num_videos: int) -> Advance:
    begin = last = time.monotonic()
    done = failed = 0

    def advance(shards: Sequence[ShardSummary]) -> None:
        nonlocal last, done, failed
        more_done, more_failed = _count(shards)
        done, failed = done + more_done, failed + more_failed
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S or done == num_videos:
            last = now
            rate = done / max(now - begin, 1e-6)
            left = (num_videos - done) / rate
            sys.stderr.write(f"{done} of {num_videos} videos, {failed} failed, {rate:.1f} videos/s, {left:.0f} s left\n")
            sys.stderr.flush()

    return advance


def _count(shards: Sequence[ShardSummary]) -> tuple[int, int]:
    """Videos of a shard: all, and failed."""
    failed = sum(shard.num_failed for shard in shards)
    return failed + sum(shard.num_samples for shard in shards), failed
