"""How far a build is: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shard_tools.writer import ShardSummary

_LINE_EVERY_S = 10.0
Advance = Callable[[ShardSummary], None]


@contextlib.contextmanager
def show_progress(num_videos: int) -> Iterator[Advance]:
    """Yields a function to call with each finished shard.

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
        TextColumn("videos, {task.fields[failed]} failed"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=num_videos, failed=0)

        def advance(shard: ShardSummary) -> None:
            failed = progress.tasks[0].fields["failed"] + shard.num_failed
            progress.update(task, advance=shard.num_samples + shard.num_failed, failed=failed)

        yield advance


def _line_writer(num_videos: int) -> Advance:
    begin = last = time.monotonic()
    done = failed = 0

    def advance(shard: ShardSummary) -> None:
        nonlocal last, done, failed
        done += shard.num_samples + shard.num_failed
        failed += shard.num_failed
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S or done == num_videos:
            last = now
            rate = done / max(now - begin, 1e-6)
            left = (num_videos - done) / rate
            sys.stderr.write(f"{done} of {num_videos} videos, {failed} failed, {rate:.1f} videos/s, {left:.0f} s left\n")
            sys.stderr.flush()

    return advance
