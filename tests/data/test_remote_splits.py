"""Splits on a real S3 server and on a web server, through the cache and without it."""

import contextlib
import logging
import os
import shutil
import ssl
import subprocess
import sys
import threading
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dgl_scale.config import CacheConfig
from dgl_scale.data.index import load_split
from dgl_scale.data.loader import TrainLoader, evaluation_batches
from dgl_scale.data.reader import SampleReader
from dgl_scale.errors import ConfigError, DataError, DglError
from tests.s3_server import SECRET, s3_bucket

NUM_CAPTIONS = [2, 1, 3, 1, 2, 1, 1, 2]


@pytest.fixture(scope="module")
def s3():
    with s3_bucket() as system:
        yield system


@pytest.fixture(scope="module")
def folder(make_split):
    return make_split(NUM_CAPTIONS, per_shard=3)


@pytest.fixture
def url(s3, folder, request):
    """A copy of the split on the server, of each test its own."""
    address = f"bucket/{request.node.name.partition('[')[0]}/train"
    s3.put(str(folder) + "/", f"{address}/", recursive=True)
    return f"s3://{address}"


@pytest.fixture
def cache(tmp_path):
    return CacheConfig(folder=str(tmp_path / "cache"))


def read_all(index):
    reader = SampleReader(index)
    return [reader.read(i) for i in range(index.num_videos)]


def cached_files(cache):
    return sorted(name for name in os.listdir(cache.folder) if name != ".lock")


@pytest.mark.parametrize("cached", [True, False])
def test_a_remote_split_is_the_local_one(url, folder, cache, cached):
    local, remote = load_split(folder), load_split(url, cache=cache if cached else None)
    assert remote.digest == local.digest and remote.folder == url
    assert read_all(remote) == read_all(local)


def test_shards_and_rows_are_fetched_once_and_checked(url, s3, folder, cache):
    expected = read_all(load_split(folder))
    assert read_all(load_split(url, cache=cache)) == expected
    assert len(cached_files(cache)) == 4  # three shards, and the rows of all
    for name in s3.ls(url):
        if not name.endswith("index.json"):
            s3.rm(name)
    again = load_split(url, cache=cache)
    assert read_all(again) == expected


def test_a_damaged_copy_is_fetched_again(url, folder, cache):
    index = load_split(url, cache=cache)
    expected = read_all(index)
    damaged, cut = (Path(cache.folder, f"{shard.sha256}.tar") for shard in index.shards[1:])
    content = bytearray(damaged.read_bytes())
    content[700] ^= 1
    damaged.write_bytes(content)
    os.truncate(cut, 1000)
    assert read_all(index) == expected
    assert [shard.read_bytes() for shard in load_split(folder).shards[1:]] == [damaged.read_bytes(), cut.read_bytes()]


def loader_options(**changes):
    options = {"num_frames": 3, "global_batch_size": 4, "micro_batch_size": None, "seed": 3, "rank": 0, "world_size": 1}
    options |= {"num_workers": 0, "train_frames": "random", "last_batch": "drop", "max_corrupt_fraction": 0.5}
    return options | changes


def keys_of(steps):
    return [key for step in steps for batch in step for key in batch.keys]


@pytest.mark.slow
def test_workers_train_and_evaluate_from_a_server(url, folder, cache, code_points):
    expected = keys_of(TrainLoader(load_split(folder), code_points, 24, **loader_options()).steps(0, 3))
    index = load_split(url, cache=cache)
    assert keys_of(TrainLoader(index, code_points, 24, **loader_options(num_workers=1)).steps(0, 3)) == expected
    batches = evaluation_batches(index, code_points, 24, 3, start=0, stop=8, batch_size=3, num_workers=0)
    assert [key for batch in batches for key in batch.keys] == index.keys.tolist()


def test_a_cache_of_one_shard_serves_evaluation_and_not_training(url, cache, code_points):
    sizes = [shard.size for shard in load_split(url, cache=cache).shards]
    small = CacheConfig(folder=cache.folder + "-small", max_gib=(max(sizes) + 8000) / 2**30)
    index = load_split(url, cache=small)
    batches = evaluation_batches(index, code_points, 24, 3, start=0, stop=8, batch_size=3, num_workers=0)
    assert [key for batch in batches for key in batch.keys] == index.keys.tolist()
    assert sum(os.stat(os.path.join(small.folder, name)).st_size for name in cached_files(small)) <= small.max_gib * 2**30
    with pytest.raises(ConfigError, match=r"the shards of s3://bucket/.* have 0.0 GiB and data.cache.max_gib is .*; raise it"):
        TrainLoader(index, code_points, 24, **loader_options())


def test_a_shard_that_vanished_costs_its_samples(url, s3, cache, code_points, caplog):
    caplog.set_level(logging.WARNING)
    index = load_split(url, cache=cache)
    s3.rm(index.shards[2].url)
    loader = TrainLoader(index, code_points, 24, **loader_options())
    keys = keys_of(loader.steps(0, 3))
    assert set(keys) == {f"video_{i}" for i in range(6)} and set(loader.corrupt) == {"video_6", "video_7"}
    assert all("tiny-train-000002.tar: no such file" in error for error in loader.corrupt.values())


def test_a_replaced_shard_is_refused(url, s3, cache):
    index = load_split(url, cache=cache)
    s3.pipe(index.shards[0].url, bytes(index.shards[0].size))
    with pytest.raises(DataError, match=r"tiny-train-000000.tar is not the file of [\d,]+ bytes that its index lists"):
        SampleReader(index).read(0)
    assert len(cached_files(cache)) == 1
    with pytest.raises(DataError, match=r"sample video_0 of shard s3://.*tiny-train-000000.tar is damaged"):
        SampleReader(load_split(url, cache=None)).read(0)


def test_a_full_disk_is_one_line(url, cache):
    # A file where the folder should be: as unusable as a full disk, also for root.
    index = load_split(url, cache=None)
    Path(cache.folder).touch()
    with pytest.raises(DglError, match=r"cannot use data.cache.folder .*choose another folder") as error:
        load_split(url, cache=cache)
    assert "\n" not in str(error.value)
    assert SampleReader(index).read(0).key == "video_0"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://no-such-bucket/train", "no-such-bucket.*bucket"),
        ("s3://bucket/absent", r"s3://bucket/absent has no index.json, so it is no finished split"),
        ("ftp://host/train", "split ftp://host/train: ftp:// is not supported; use a local folder, s3://"),
    ],
)
def test_addresses_of_nothing(s3, cache, address, message):
    with pytest.raises(DglError, match=message) as error:
        load_split(address, cache=cache)
    assert "\n" not in str(error.value)


def test_wrong_credentials_are_told_at_once_and_not_shown(s3, cache, monkeypatch):
    port = os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]

    def let_through(requests):
        address = f"http://127.0.0.1:{port}/moto-api/reset-auth"
        request = urllib.request.Request(address, data=str(requests).encode(), headers={"Content-Type": "text/plain"}, method="POST")
        urllib.request.urlopen(request).close()

    let_through(0)
    try:
        with pytest.raises(DglError, match=r"s3://bucket/train.*: access denied; check the credentials") as error:
            load_split("s3://bucket/train", cache=cache)
        assert SECRET not in str(error.value) and "\n" not in str(error.value)
    finally:
        let_through(10**9)


@contextlib.contextmanager
def serve_files(folder, certificate=None):
    """A web server of a folder on loopback; with a certificate (its key in the same file) by TLS."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def web(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "train")
    with serve_files(tmp_path) as address:
        yield f"{address}/train"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_https_is_read_and_its_certificate_checked(folder, tmp_path):
    certificate = tmp_path / "server.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    request += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(certificate), "-keyout", str(tmp_path / "key.pem")]
    subprocess.run(request, check=True, capture_output=True)
    with open(certificate, "ab") as stream:
        stream.write((tmp_path / "key.pem").read_bytes())
    with serve_files(folder, certificate) as address:
        read = "import sys; from dgl_scale.data.index import load_split; print(load_split(sys.argv[1]).num_videos)"
        command = [sys.executable, "-c", read, address]
        # The certificates that are trusted are read once a process.
        trusting, strict = (
            subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=os.environ | more)
            for more in ({"SSL_CERT_FILE": str(certificate)}, {})
        )
    assert (trusting.returncode, trusting.stdout) == (0, f"{len(NUM_CAPTIONS)}\n"), trusting.stderr
    assert strict.returncode == 1
    assert strict.stderr.splitlines()[-1].endswith(
        "the server's certificate is not trusted; SSL_CERT_FILE names a file of the authorities to trust"
    )


def test_a_web_server_and_secrets_in_its_address(web, folder, cache):
    index = load_split(f"{web}?token={SECRET}", cache=cache)
    assert read_all(index) == read_all(load_split(folder))
    assert index.folder == web and SECRET not in str(index.shards[0])


def test_a_web_server_without_ranges_needs_the_cache(web):
    index = load_split(web, cache=None)
    with pytest.raises(DglError, match="the server sends no parts of files; set data.cache"):
        SampleReader(index).read(0)


_READ_BYTES = """
import io, os, pyarrow, pyarrow.parquet
from dgl_scale.data import split_files
stream = io.BytesIO()
pyarrow.parquet.write_table(pyarrow.table({"key": [str(i) for i in range(100_000)], "size": range(100_000)}), stream)
before = os.listdir("/proc/self/task")
table = split_files._read_here(stream.getvalue())
print(table.num_rows, table.column_names, os.listdir("/proc/self/task") == before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_no_thread_is_left_that_holds_what_was_read():
    """Such a thread aborts a process that ends before it has let go: seen once in a hundred runs on a busy machine."""
    found = subprocess.run([sys.executable, "-c", _READ_BYTES], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout == "100000 ['key', 'size'] True\n"
