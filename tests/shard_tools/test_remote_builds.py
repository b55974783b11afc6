"""Builds from and into a real S3 server and from a web server, also over a network that is not to be trusted."""

import contextlib
import random
import re
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
import s3fs
import yaml

from dgl_scale.shards_config import ShardsConfig
from dgl_scale.storage.storage import Storage
from dgl_scale.storage_config import StorageConfig
from shard_tools.build import main
from shard_tools.leakage import main as leakage_main
from shard_tools.ledger import read_ledger
from shard_tools.stats import main as stats_main
from shard_tools.verify import main as verify_main
from tests.s3_server import SECRET, point_s3_at, serve_s3
from tests.shard_tools.bad_network import FATES, BadNetwork


@pytest.fixture(scope="module")
def s3_port() -> Iterator[int]:
    with serve_s3() as port:
        yield port


@pytest.fixture
def connect(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that points this process's S3 at a port; at the server itself to begin with."""
    point_s3_at(monkeypatch, s3_port)
    yield partial(point_s3_at, monkeypatch)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def source(videos_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`videos_folder` without links, which object storage does not have."""
    folder = tmp_path_factory.mktemp("source") / "videos"
    shutil.copytree(videos_folder, folder, symlinks=True)
    (folder / "silent.mp4").unlink()
    shutil.copy(folder / "good" / "02.mp4", folder / "odd name + é.mp4")
    return folder


@pytest.fixture
def bucket(connect: Any, s3_port: int, source: Path) -> Iterator[str]:
    """A bucket that holds the videos below `in`."""
    system = fsspec.filesystem("s3", use_listings_cache=False)
    system.mkdir("videos")
    for path in sorted(source.rglob("*")):
        if path.is_file():
            system.pipe_file(f"videos/in/{path.relative_to(source)}", path.read_bytes())
    yield "s3://videos"
    connect(s3_port)
    fsspec.filesystem("s3", use_listings_cache=False).rm("videos", recursive=True)


@pytest.fixture
def config_file(shards_config: ShardsConfig, source: Path, tmp_path: Path) -> str:
    """A build of `source` that is quick to lose patience with servers."""
    path = tmp_path / "config.yaml"
    values = shards_config.model_dump(mode="json")
    storage = {"timeout_s": 0.4, "attempts": 12}
    path.write_text(yaml.safe_dump({**values, "videos": str(source), "annotations": str(source / "annotations.jsonl"), "storage": storage}))
    return str(path)


@pytest.fixture
def web(source: Path) -> Iterator[str]:
    """A web server of the videos; `/away` redirects to a file of this machine, `/moved` to a video, `/busy` is busy."""

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            places = {"/away": "file:///etc/passwd", "/moved": "/good/00.mp4", "/round": "/round"}
            path = self.path.partition("?")[0]
            if path in places:
                self.send_response(302)
                self.send_header("Location", places[path])
                self.end_headers()
            elif path == "/busy":
                self.send_error(503)
            else:
                super().do_GET()

    with serve(partial(Handler, directory=str(source))) as address:
        yield address


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves the files of a folder."""

    def log_message(self, *arguments: Any) -> None:
        pass


@contextlib.contextmanager
def serve(handler: Any) -> Iterator[str]:
    """Host and port of a web server with this handler."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def check_keys_after(requests: int, port: int) -> None:
    """Let the server accept any keys in so many requests, and then only those that it knows."""
    address = f"http://127.0.0.1:{port}/moto-api/reset-auth"
    request = urllib.request.Request(address, data=str(requests).encode(), headers={"Content-Type": "text/plain"}, method="POST")
    with urllib.request.urlopen(request):
        pass


def objects(url: str) -> dict[str, bytes]:
    system = fsspec.filesystem("s3", use_listings_cache=False)
    root = url.removeprefix("s3://")
    return {name.removeprefix(f"{root}/"): system.cat_file(name) for name in system.find(root)}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def without_record(found: dict[str, bytes]) -> dict[str, bytes]:
    """All but `build.json`, which tells where the videos were."""
    return {name: content for name, content in found.items() if name != "build.json"}


def test_over_a_bad_network_the_bytes_are_those_of_a_local_build(
    config_file: str,
    bucket: str,
    connect: Any,
    s3_port: int,
    tmp_path: Path,
    without_ray: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(["--config", config_file]) == 0
    reference = without_record(files(tmp_path / "shards"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    remote = [f"annotations={bucket}/in/annotations.jsonl", f"videos={bucket}/in", f"output={bucket}/out", f"storage.scratch={scratch}"]
    with BadNetwork(s3_port, share=0.05, delay_s=0.6, seed=3) as network:
        connect(network.port)
        assert main(["--config", config_file, *remote]) == 0
    assert all(network.met[fate] for fate in FATES), network.met
    connect(s3_port)
    assert without_record(objects(f"{bucket}/out")) == reference
    assert verify_main([f"{bucket}/out"]) == 0
    assert list(scratch.iterdir()) == []
    assert SECRET not in "".join(capsys.readouterr()) and not any(SECRET.encode() in content for content in objects(bucket).values())


def test_an_upload_in_parts_is_checked_too(bucket: str, connect: Any, s3_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgl_scale.storage.storage._PART_BYTES", 5 << 20)
    content = random.Random(0).randbytes(11 << 20)
    storage = Storage(StorageConfig(timeout_s=2.0, attempts=12))
    with BadNetwork(s3_port, share=0.1, delay_s=2.5, seed=1) as network:
        connect(network.port)
        with storage.output_file(f"{bucket}/large") as stream:
            stream.write(content)
        with storage.local_copy(f"{bucket}/large") as path:
            assert path.read_bytes() == content
    assert network.met["corrupt_request"], network.met
    connect(s3_port)
    assert objects(bucket)["large"] == content
    with pytest.raises(ZeroDivisionError), storage.output_file(f"{bucket}/never") as stream:
        stream.write(content)
        raise ZeroDivisionError
    assert "never" not in objects(bucket)


def test_a_build_in_object_storage_goes_on(
    config_file: str, bucket: str, without_ray: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", config_file, f"output={bucket}/out", f"videos={bucket}/in", "splits=[train]"]
    assert main(arguments) == 0
    before = objects(f"{bucket}/out")
    system = fsspec.filesystem("s3", use_listings_cache=False)
    system.rm_file("videos/out/train/toy-train-000001.parquet")
    without_ray.clear()
    assert main(arguments) == 0
    assert without_ray == ["toy-train-000001"] and objects(f"{bucket}/out") == before
    assert main([*arguments, "frames.fps=2"]) == 2
    assert "s3://videos/out was begun with another config: frames.fps was 3.0, now 2.0" in capsys.readouterr().err
    system.copy("videos/in/good/00.mp4", "videos/in/text.mp4")
    assert main([*arguments, "--retry-failed"]) == 0
    assert "rewritten, now with bad text.mp4\n1 of " in capsys.readouterr().err
    assert verify_main([f"{bucket}/out"]) == 0
    system.pipe_file("videos/out/train/toy-train-000000.tar", b"x" + system.cat_file("videos/out/train/toy-train-000000.tar")[1:])
    assert verify_main([f"{bucket}/out"]) == 1
    assert "train/toy-train-000000.tar" in capsys.readouterr().err


def test_videos_from_the_web(
    config_file: str, web: str, tmp_path: Path, without_ray: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "web.csv"
    secret = f"http://user:{SECRET}@{web}"
    urls = {
        "good": f"{secret}/good/01.mp4?signature={SECRET}",
        "moved": f"http://{web}/moved",
        "odd": f"http://{web}/odd name %2B é.mp4",
        "none": f"{secret}/none.mp4?signature={SECRET}",
        "away": f"http://{web}/away?signature={SECRET}",
        "round": f"http://{web}/round",
        "busy": f"http://{web}/busy",
        "text": f"http://{web}/text.mp4",
        "file": "file:///etc/passwd",
        "chain": f"simplecache::http://{web}/good/01.mp4",
    }
    table.write_text("path,captions,name\n" + "".join(f"{url},a caption,{name}\n" for name, url in urls.items()))
    arguments = [f"annotations={table}", "columns.video_id=name", "columns.split=null", f"output={tmp_path / 'web'}"]
    assert main(["--config", config_file, *arguments, "storage.attempts=2", "storage.timeout_s=10", "max_failed_fraction=1"]) == 0
    rows = {row.video_id: row for row in read_ledger(tmp_path / "web" / "train" / "toy-train-000000.parquet").rows}
    assert {name: (str(row.status), row.error) for name, row in rows.items()} == {
        "good": ("ok", None),
        "moved": ("ok", None),
        "odd": ("ok", None),
        "none": ("missing", f"http://{web}/none.mp4: no such file"),
        "away": ("unreachable", f"http://{web}/away: redirects to an address that is neither http nor https"),
        "round": ("unreachable", f"http://{web}/round: redirects without end"),
        "busy": ("unreachable", f"http://{web}/busy: the server answers 503 (2 attempts)"),
        "text": ("unreadable", rows["text"].error),
        "file": ("bad_path", "file:// is not read; use one of gs, http, https, s3, or a path"),
        "chain": ("missing", "no such file in the videos folder"),
    }
    assert main(["--config", config_file, *arguments, "max_failed_fraction=0.1"]) == 1
    assert SECRET not in "".join(capsys.readouterr()) and not any(
        SECRET.encode() in content for content in files(tmp_path).values() if content != table.read_bytes()
    )


def reports(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith(("stats", "leakage"))}


def test_reports_of_remote_builds_are_those_of_local_ones(
    config_file: str, bucket: str, connect: Any, s3_port: int, tmp_path: Path, without_ray: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def report(location: str, *options: str) -> str:
        assert stats_main([location, *options]) == 0 and leakage_main([location, "--workers", "1", *options]) == 0
        return re.sub("drawn in .*", "", capsys.readouterr().out)

    assert main(["--config", config_file, "max_shard_bytes=60000"]) == 0
    local, fetched = tmp_path / "shards", tmp_path / "fetched"
    capsys.readouterr()
    printed, written = report(str(local)), reports(local)
    assert len(written) == 4 and "twice in train" in printed
    system = fsspec.filesystem("s3", use_listings_cache=False)
    for name, content in files(local).items():
        if name not in written:
            system.pipe_file(f"videos/out/{name}", content)
    with BadNetwork(s3_port, share=0.05, delay_s=0.1, seed=2) as network:
        connect(network.port)
        assert report(f"{bucket}/out") == printed
    assert network.met["corrupt_response"], network.met
    connect(s3_port)
    assert {name: content for name, content in objects(f"{bucket}/out").items() if name in written} == written
    with serve(partial(QuietHandler, directory=str(local))) as address:
        assert verify_main([f"http://{address}"]) == 0
        capsys.readouterr()
        assert report(f"http://{address}", "--report", str(fetched)) == printed
        assert stats_main([f"http://{address}"]) == 2 and leakage_main([f"http://{address}"]) == 2
        assert capsys.readouterr().err == f"error: nothing can be written to http://{address}; give --report FOLDER\n" * 2
        assert stats_main([f"http://{address}/none", "--report", str(fetched)]) == 1
        assert capsys.readouterr().err == f"error: http://{address}/none/build.json: no such file\n"
    assert reports(fetched) == written


def test_a_video_that_is_too_large_is_not_fetched(config_file: str, web: str, tmp_path: Path, without_ray: list[str]) -> None:
    arguments = [f"videos=http://{web}", f"output={tmp_path / 'out'}", "storage.max_video_gib=0.000001", "max_failed_fraction=1"]
    assert main(["--config", config_file, *arguments]) == 0
    rows = read_ledger(tmp_path / "out" / "test" / "toy-test-000000.parquet").rows
    assert {row.status for row in rows} == {"too_large"} and "storage.max_video_gib" in str(rows[0].error)


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["output=s3://none/out"], 1, "s3://none: no such bucket"),
        (["videos=s3://none/in"], 1, "s3://none: no such bucket"),
        (["annotations=s3://videos/none.csv"], 1, "s3://videos/none.csv: no such file"),
        (["output=https://example.org/out"], 2, "output: https:// cannot be used; give a path, or a URL of gs://, s3://"),
        (["videos=file:///etc"], 2, "videos: file:// cannot be used"),
        (["format=folder", "videos=s3://videos/in"], 2, "format folder needs a local folder"),
        (["output=gs://bucket/out"], 1, "gs:// needs gcsfs (pip install gcsfs)"),
    ],
)
def test_places_that_cannot_be_used(
    config_file: str, bucket: str, capsys: pytest.CaptureFixture[str], overrides: list[str], code: int, message: str
) -> None:
    before = objects(bucket)
    assert main(["--config", config_file, *overrides]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and SECRET not in error
    assert objects(bucket) == before


def test_an_unreachable_server_and_wrong_credentials_are_one_line(
    config_file: str, bucket: str, connect: Any, s3_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", config_file, f"output={bucket}/out", "storage.attempts=2"]
    connect(1)
    assert main(arguments) == 1
    assert capsys.readouterr().err == "error: s3://videos: the server cannot be reached (2 attempts)\n"
    connect(s3_port)
    check_keys_after(0, s3_port)
    try:
        assert main(arguments) == 1
    finally:
        check_keys_after(1_000_000, s3_port)
    assert capsys.readouterr().err == "error: s3://videos: access denied; check the credentials and their rights\n"


def test_the_record_and_the_shown_config_hold_no_secret(config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", config_file, f"videos=https://me:{SECRET}@example.org/videos?key={SECRET}", "--show-config"]) == 0
    shown = capsys.readouterr().out
    assert "videos: https://example.org/videos\n" in shown and SECRET not in shown
