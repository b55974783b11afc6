import fcntl
import os
import resource
import signal
from multiprocessing import get_context

import pytest

from dgl_scale.config import CacheConfig
from dgl_scale.data.cache import DiskCache
from dgl_scale.errors import DglError

KIB = 1024


def build_cache(folder, kib=100):
    return DiskCache(CacheConfig(folder=str(folder), max_gib=kib / 2**20))


def content(name, size=30 * KIB):
    return (name.encode() * size)[:size]


def read(cache, name, size=30 * KIB):
    """The content of a file, and whether it had to be filled."""
    filled = []
    descriptor = cache.open(name, size, lambda stream: filled.append(stream.write(content(name, size))))
    found = os.pread(descriptor, size + 1, 0)
    os.close(descriptor)
    assert found == content(name, size)
    return bool(filled)


def age(folder, *names):
    for seconds, name in enumerate(names):
        os.utime(folder / name, (10**9 + seconds,) * 2)


def names(folder):
    return sorted(name for name in os.listdir(folder) if name != ".lock")


def test_a_file_is_filled_once(tmp_path):
    cache = build_cache(tmp_path / "new" / "folder")
    assert [read(cache, "a"), read(cache, "a"), read(build_cache(tmp_path / "new" / "folder"), "a")] == [True, False, False]


def test_the_least_recently_used_make_room(tmp_path):
    cache = build_cache(tmp_path)
    for name in "abc":
        read(cache, name)
    age(tmp_path, "a", "b", "c")
    read(cache, "a")
    assert read(cache, "d") and names(tmp_path) == ["a", "c", "d"]
    assert sum(os.stat(tmp_path / name).st_size for name in names(tmp_path)) <= 100 * KIB


def test_what_is_read_stays_even_above_the_limit(tmp_path):
    cache = build_cache(tmp_path)
    held = [cache.open(name, 30 * KIB, lambda stream, name=name: stream.write(content(name))) for name in "abc"]
    age(tmp_path, "a", "b", "c")
    assert read(cache, "d") and names(tmp_path) == ["a", "b", "c", "d"]
    os.close(held[1])
    assert read(cache, "e") and names(tmp_path) == ["a", "c", "e"]
    assert os.pread(held[0], 3, 0) == b"aaa"


def test_a_file_of_another_size_is_filled_again(tmp_path):
    cache = build_cache(tmp_path)
    read(cache, "a")
    os.truncate(tmp_path / "a", 100)
    assert read(cache, "a") and not read(cache, "a")


def test_what_is_discarded_is_filled_again_unless_it_was_replaced(tmp_path):
    cache = build_cache(tmp_path)
    read(cache, "a")
    first, second = (cache.open("a", 30 * KIB, lambda stream: None) for _ in range(2))
    cache.discard("a", first)
    assert names(tmp_path) == [] and read(cache, "a")
    cache.discard("a", second)
    assert names(tmp_path) == ["a"] and not read(cache, "a")


def test_a_failed_fill_leaves_nothing(tmp_path):
    cache = build_cache(tmp_path)

    def fail(stream):
        stream.write(b"half")
        raise DglError("the server is gone")

    with pytest.raises(DglError, match="the server is gone"):
        cache.open("a", 30 * KIB, fail)
    assert names(tmp_path) == [] and read(cache, "a")


def test_small_things_are_remembered_and_checked(tmp_path):
    cache = build_cache(tmp_path)
    assert cache.recall("rows") is None
    cache.remember("rows", b"many rows")
    assert cache.recall("rows") == b"many rows"
    (tmp_path / "rows").write_bytes((tmp_path / "rows").read_bytes()[:-1] + b"?")
    assert cache.recall("rows") is None
    cache.remember("rows", b"many rows")
    assert cache.recall("rows") == b"many rows"


def test_errors_are_one_line_that_says_what_to_do(tmp_path):
    with pytest.raises(DglError, match=r"data.cache.max_gib 9.*e-05 is less than one shard .*; raise it"):
        read(build_cache(tmp_path), "a", 101 * KIB)
    (tmp_path / "file").touch()
    with pytest.raises(DglError, match=r"cannot use data.cache.folder .*file/cache: Not a directory; .*choose another folder"):
        read(build_cache(tmp_path / "file" / "cache"), "a")
    # A limit on the size of files answers as a full disk does, but for the number of the error.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10 * KIB, hard))
    try:
        with pytest.raises(DglError, match=r"cannot use data.cache.folder .*: File too large; .*choose another folder"):
            read(build_cache(tmp_path), "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert names(tmp_path) == ["file"]


def fill_slowly(folder, pipe):
    def fill(stream):
        pipe.send("filling")
        pipe.recv()
        stream.write(content("a"))

    os.close(build_cache(folder).open("a", 30 * KIB, fill))
    pipe.send("done")


def test_processes_wait_for_the_one_that_fills_and_go_on_when_it_is_killed(tmp_path):
    context = get_context("fork")
    ours, theirs = context.Pipe()
    first = context.Process(target=fill_slowly, args=(tmp_path, theirs))
    first.start()
    assert ours.recv() == "filling"
    second = context.Process(target=fill_slowly, args=(tmp_path, theirs))
    second.start()
    assert not ours.poll(0.3), "both fill the same file"
    first.kill()
    first.join()
    assert ours.recv() == "filling" and names(tmp_path) == ["a.part"]
    ours.send("go on")
    assert ours.recv() == "done"
    second.join()
    assert second.exitcode == 0 and names(tmp_path) == ["a"] and not read(build_cache(tmp_path), "a")


def test_what_a_killed_process_left_makes_room_first(tmp_path):
    cache = build_cache(tmp_path)
    for name in ("old.part", "b"):
        (tmp_path / name).write_bytes(content(name))
    age(tmp_path, "b", "old.part")
    with open(tmp_path / "b", "rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        assert read(cache, "c", 50 * KIB) and names(tmp_path) == ["b", "c"]


def hammer(folder, seed):
    cache = build_cache(folder)
    order = [(seed * 7 + i * i) % 6 for i in range(200)]
    for number in order:
        read(cache, f"file{number}")


def test_many_processes_share_a_small_cache(tmp_path):
    processes = [get_context("fork").Process(target=hammer, args=(tmp_path, seed)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sum(os.stat(tmp_path / name).st_size for name in names(tmp_path)) <= 100 * KIB
    assert not [name for name in names(tmp_path) if name.endswith(".part")]
