"""Readers that fail, hang or are stopped."""

import http.server
import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch
from torch.utils.data import Dataset

from dgl_scale.data.activity import Activity
from dgl_scale.data.feed import Decoded, Feed
from dgl_scale.errors import DataError, DglError


class Numbers(Dataset):
    """Request n: frames of value n; what it notes and does else is told by the request."""

    def __init__(self, activity):
        self._activity = activity

    def __getitem__(self, request):
        number, order = request
        self._activity.note(f"reading number {number} of file:///numbers")
        if order == "hang":
            time.sleep(3600)
        if order == "slow":
            for _ in range(10):
                time.sleep(0.1)
                self._activity.note(f"reading number {number} of file:///numbers")
        self._activity.idle()
        failure = "the server is gone" if order == "fail" else None
        return Decoded(torch.full((1, 1, 3, 2, 2), number, dtype=torch.uint8), [str(number)], [["caption"]], failure=failure)


def build_feed(num_workers, stall_timeout_s=60.0, keep_workers=True):
    activity = Activity(num_workers)
    return Feed(
        Numbers(activity), activity, num_workers=num_workers, prefetch=2, stall_timeout_s=stall_timeout_s, keep_workers=keep_workers
    )


def test_a_failure_of_the_source_is_an_error_after_what_came_before():
    batches = build_feed(0).batches([(0, ""), (1, "fail"), (2, "")])
    assert next(batches).keys == ["0"]
    with pytest.raises(DataError, match="^the server is gone$"):
        next(batches)


def test_a_feed_that_is_not_kept_leaves_no_thread():
    before = threading.active_count()
    feeds = [build_feed(0, keep_workers=False) for _ in range(3)]
    for feed in feeds[:2]:
        assert len(list(feed.batches([(0, ""), (1, "")]))) == 2
    with pytest.raises(DataError):
        list(feeds[2].batches([(0, "fail")]))
    deadline = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_stalled_source_is_named_and_slow_ones_are_not():
    feed = build_feed(0, stall_timeout_s=0.4)
    batches = feed.batches([(0, ""), (1, "slow"), (2, "hang")])
    assert [next(batches).keys for _ in range(2)] == [["0"], ["1"]]
    with pytest.raises(
        DataError, match=r"reading stalled: reading number 2 of file:///numbers, and nothing for \d s .data.stall_timeout_s."
    ):
        next(batches)


def test_what_is_called_may_fail_or_stall_too():
    feed = build_feed(0, stall_timeout_s=0.2)
    assert feed.call(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        feed.call(lambda: 1 // 0)
    with pytest.raises(DataError, match="reading stalled: no sign of life"):
        feed.call(lambda: time.sleep(3600))


@pytest.mark.slow
def test_workers_that_hang_or_are_stopped_are_ended():
    feed = build_feed(2, stall_timeout_s=12.0)
    first = feed.batches([(number, "") for number in range(50)])
    assert [next(first).keys for _ in range(3)] == [["0"], ["1"], ["2"]]
    workers = multiprocessing.active_children()
    # Another range, while the workers are busy with the one before.
    batches = feed.batches([(100, ""), (101, "slow"), (102, ""), (103, "hang"), (104, "")])
    assert [next(batches).keys for _ in range(3)] == [["100"], ["101"], ["102"]]
    os.kill(workers[0].pid, signal.SIGSTOP)
    feed.stall_timeout_s = 1.0
    with pytest.raises(DataError, match=r"reading stalled: reading number 103 of file:///numbers, and nothing for \d+ s"):
        list(batches)
    assert not set(workers) & set(multiprocessing.active_children())
    with pytest.raises(DglError, match="a reading process died"):
        list(feed.batches([(0, "")]))


def test_a_web_server_that_falls_silent_is_named(make_split, tmp_path, code_points):
    from dgl_scale.config import CacheConfig
    from dgl_scale.data.index import load_split
    from dgl_scale.data.loader import evaluation_batches

    folder, hold = make_split([1, 1]), threading.Event()

    class Silent(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments):
            pass

        def copyfile(self, source, outputfile):
            if self.path.endswith(".tar"):
                outputfile.write(source.read(5000))
                outputfile.flush()
                hold.wait(60)
            else:
                super().copyfile(source, outputfile)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        index = load_split(url, cache=CacheConfig(folder=str(tmp_path)))
        options = {"start": 0, "stop": 2, "batch_size": 2, "num_workers": 0, "stall_timeout_s": 1.0}
        with pytest.raises(DataError, match=rf"reading stalled: fetching shard {url}/tiny-train-000000.tar, and nothing for \d s"):
            next(evaluation_batches(index, code_points, 24, 3, **options))
        hold.set()
        server.shutdown()
