import hashlib
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import simplejpeg
import webdataset

from dgl_scale.data.samples import decode_members, decode_tar_range
from dgl_scale.errors import DglError
from dgl_scale.shards_config import DecoderConfig, ShardsConfig
from shard_tools.annotations.table import read_table
from shard_tools.annotations.videos import AnnotatedVideo
from shard_tools.decoder import Decoder
from shard_tools.failures import SampleFailure, Status
from shard_tools.finished import finished_shard
from shard_tools.ledger import read_ledger
from shard_tools.plan import ShardPlan, plan_shards
from shard_tools.verify import read_tar
from shard_tools.video import decode_video
from shard_tools.video_request import VideoRequest
from shard_tools.writer import build_shard, decode_surely
from tests.shard_tools.clips import encode, picture


@pytest.fixture
def plan(shards_config: ShardsConfig) -> ShardPlan:
    """One shard of all training videos, good and bad."""
    videos = read_table(Path(str(shards_config.annotations)), shards_config.columns, "train")
    return plan_shards(videos, "toy", 100, 0, ["train"])[0]


def test_a_shard_holds_the_good_and_tells_of_the_bad(plan: ShardPlan, shards_config: ShardsConfig, tmp_path: Path) -> None:
    (summary,) = build_shard(plan, shards_config, tmp_path)
    rows = {row.video_id: row for row in read_ledger(tmp_path / "train" / f"{plan.name}.parquet").rows}
    bad = {video_id.removeprefix("bad "): row.status for video_id, row in rows.items() if row.status is not Status.OK}
    assert bad == {
        "text.mp4": Status.UNREADABLE,
        "empty.mp4": Status.EMPTY,
        "cut.mp4": Status.TRUNCATED,
        "none.mp4": Status.MISSING,
        "../out.mp4": Status.BAD_PATH,
        "/etc/passwd": Status.BAD_PATH,
        "silent.mp4": Status.BAD_PATH,
        "a\0b.mp4": Status.BAD_PATH,
        "mute": Status.NO_CAPTION,
    }
    assert all(row.error and "\n" not in row.error and row.offset is row.size is row.sha256 is None for row in rows.values() if row.error)
    assert (summary.num_samples, summary.num_failed) == (9, 9)
    assert [row.key for row in read_ledger(tmp_path / "train" / f"{plan.name}.parquet").rows] == [planned.key for planned in plan.samples]


def test_each_range_of_the_tar_is_its_sample(plan: ShardPlan, shards_config: ShardsConfig, tmp_path: Path) -> None:
    (summary,) = build_shard(plan, shards_config, tmp_path)
    tar = (tmp_path / "train" / f"{plan.name}.tar").read_bytes()
    assert (len(tar), hashlib.sha256(tar).hexdigest()) == (summary.bytes, summary.sha256)
    end = 0
    for row in read_ledger(tmp_path / "train" / f"{plan.name}.parquet").rows:
        if row.status is not Status.OK:
            continue
        assert row.offset == end and row.size is not None and row.size % 512 == 0
        end += row.size
        content = tar[row.offset : end]
        assert hashlib.sha256(content).hexdigest() == row.sha256
        sample = decode_tar_range(content)
        assert (sample.key, sample.metadata.video_id, len(sample.frames)) == (row.key, row.video_id, row.n_frames)
        assert (len(sample.metadata.captions), sample.metadata.duration) == (row.n_captions, row.duration)
        assert sample.metadata.source == f"{row.video_id}.mp4"
        assert simplejpeg.decode_jpeg_header(sample.frames[0])[:2] == (32, 43)


def test_any_tar_reader_and_webdataset_read_it(plan: ShardPlan, shards_config: ShardsConfig, tmp_path: Path) -> None:
    build_shard(plan, shards_config, tmp_path)
    path = tmp_path / "train" / f"{plan.name}.tar"
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    assert {(member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode) for member in members} == {
        (0, 0, 0, "dgl", "dgl", 0o444)
    }
    samples = [decode_members(members) for _, members in read_tar(path)]
    assert len(samples) == 9
    assert {sample.metadata.captions[-1] for sample in samples} >= {"第二", "third 🎬"}


def test_the_tar_is_what_webdataset_would_write(plan: ShardPlan, shards_config: ShardsConfig, tmp_path: Path) -> None:
    build_shard(plan, shards_config, tmp_path)
    path = tmp_path / "train" / f"{plan.name}.tar"
    with open(tmp_path / "theirs.tar", "wb") as stream, webdataset.TarWriter(stream, "dgl", "dgl", encoder=False, mtime=0) as writer:
        for key, members in read_tar(path):
            writer.write({"__key__": key, **{name.removeprefix(f"{key}."): content for name, content in members}})
    assert (tmp_path / "theirs.tar").read_bytes() == path.read_bytes()


def test_the_same_input_gives_the_same_bytes(plan: ShardPlan, shards_config: ShardsConfig, tmp_path: Path) -> None:
    for folder in ("one", "other"):
        build_shard(plan, shards_config, tmp_path / folder)
    for suffix in ("tar", "parquet"):
        one, other = ((tmp_path / folder / "train" / f"{plan.name}.{suffix}").read_bytes() for folder in ("one", "other"))
        assert one == other


def test_a_shard_of_failures_has_no_tar(shards_config: ShardsConfig, tmp_path: Path) -> None:
    plan = plan_shards([AnnotatedVideo("x", "none.mp4", ("c",), "train")], "toy", 10, 0, None)[0]
    (summary,) = build_shard(plan, shards_config, tmp_path)
    assert sorted(os.listdir(tmp_path / "train")) == ["toy-train-000000.parquet"]
    assert (summary.num_samples, summary.bytes, summary.sha256) == (0, 0, None)
    assert finished_shard(plan, tmp_path) == [summary]


def test_a_finished_shard_is_recognised(plan: ShardPlan, shards_config: ShardsConfig, tmp_path: Path) -> None:
    assert finished_shard(plan, tmp_path) is None
    (summary,) = build_shard(plan, shards_config, tmp_path)
    assert finished_shard(plan, tmp_path) == [summary]
    tar, parquet = (tmp_path / "train" / f"{plan.name}.{suffix}" for suffix in ("tar", "parquet"))
    content = tar.read_bytes()
    tar.write_bytes(content[:-512])
    assert finished_shard(plan, tmp_path) is None
    tar.unlink()
    assert finished_shard(plan, tmp_path) is None
    tar.write_bytes(content)
    assert finished_shard(plan, tmp_path) == [summary]
    assert finished_shard(ShardPlan(plan.name, plan.split, plan.samples[1:]), tmp_path) is None
    parquet.write_bytes(parquet.read_bytes()[:100])
    assert finished_shard(plan, tmp_path) is None


def test_nothing_is_left_of_a_shard_that_stops_half_way(
    plan: ShardPlan, shards_config: ShardsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shard_tools.hashing_tar.HashingTar.close", full)
        with pytest.raises(DglError, match=r"cannot write .*toy-train-000000\.tar: No space left on device"):
            build_shard(plan, shards_config, tmp_path)
    assert os.listdir(tmp_path / "train") == []


def test_the_row_tells_which_decoder_served(shards_config: ShardsConfig, tmp_path: Path) -> None:
    # AVI says nothing of the order of its frames, and decord believes what it guesses.
    for name in ("one.mp4", "two.avi"):
        encode(tmp_path / "videos" / name, "libx264", [picture(i) for i in range(12)])
    config = shards_config.model_copy(update={"videos": str(tmp_path / "videos")})
    videos = [AnnotatedVideo(name, name, ("c",), "train") for name in ("one.mp4", "two.avi", "none.mp4")]
    (plan,) = plan_shards(videos, "toy", 10, None, None)
    build_shard(plan, config, tmp_path)
    rows = read_ledger(tmp_path / "train" / "toy-train-000000.parquet").rows
    assert [row.decoder for row in rows] == ["decord", "pyav", None]
    samples = [decode_members(members) for _, members in read_tar(tmp_path / "train" / "toy-train-000000.tar")]
    assert samples[0].metadata.frame_times == samples[1].metadata.frame_times == [0.0, 0.3, 0.6, 1.0]


def test_real_footage_goes_into_a_shard_and_back(real_clips: list[Path], shards_config: ShardsConfig, tmp_path: Path) -> None:
    config = shards_config.model_copy(update={"videos": str(real_clips[0].parent)})
    videos = [AnnotatedVideo(path.stem, path.name, (f"this is {path.stem}",), "train") for path in real_clips]
    (plan,) = plan_shards(videos, "real", 10, None, None)
    assert build_shard(plan, config, tmp_path)[0].statuses == {"ok": 3}
    samples = [decode_members(members) for _, members in read_tar(tmp_path / "train" / "real-train-000000.tar")]
    assert [(sample.key, len(sample.frames), sample.metadata.height) for sample in samples] == [
        ("bigbuckbunny", 16, 32),
        ("bikes", 30, 32),
        ("carphone_pristine", 13, 32),
    ]
    assert all(simplejpeg.decode_jpeg(frame).shape == (32, sample.metadata.width, 3) for sample in samples for frame in sample.frames)


def test_workers_load_no_torch() -> None:
    program = "import sys, shard_tools.writer; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_killed_decoder_is_not_the_fault_of_the_video(clip: Path, tmp_path: Path) -> None:
    # Killed at its start, twice with the video, and at its start again.
    program = """
import os, pathlib, signal, sys
log = pathlib.Path(sys.argv[1])
before = log.read_text() if log.exists() else ""
log.write_text(before + "+")
if len(before) in (1, 2):
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
    sys.stdin.readline()
if len(before) < 4:
    os.kill(os.getpid(), signal.SIGKILL)
del sys.argv[1]
from shard_tools.decoder import serve
serve()
"""
    with Decoder(DecoderConfig(), (sys.executable, "-c", program, str(tmp_path / "log"))) as decoder:
        found = decode_surely(decoder, VideoRequest(str(clip), fps=3.0))
    assert (len(found.frames), found.decoder) == (9, "decord")
    assert (tmp_path / "log").read_text() == "+++++"


@pytest.mark.parametrize(
    ("decord_does", "pyav_does", "status", "error"),
    [
        ("os.abort()", None, None, None),
        ("time.sleep(60)", None, None, None),
        (
            "os.abort()",
            "time.sleep(60)",
            Status.TIMEOUT,
            "the decoder was killed by SIGABRT; with PyAV alone: not decoded within 1 s",
        ),
        (
            "time.sleep(60)",
            "raise MemoryError",
            Status.TOO_LARGE,
            "not decoded within 1 s; with PyAV alone: decoding needs more memory than decoder.memory_limit_gib",
        ),
    ],
)
def test_pyav_serves_where_decord_breaks_its_process(
    clip: Path, decord_does: str, pyav_does: str | None, status: Status | None, error: str | None
) -> None:
    program = f"""
import os, time
from shard_tools import video
def decord_fails(*arguments): {decord_does}
def pyav_fails(*arguments): {pyav_does}
video.read_with_decord = decord_fails
if {pyav_does is not None}: video.read_with_av = pyav_fails
from shard_tools.decoder import serve
serve()
"""
    with Decoder(DecoderConfig(timeout_s=1.0), (sys.executable, "-c", program)) as decoder:
        request = VideoRequest(str(clip), short_side=32)
        if status is None:
            found = decode_surely(decoder, request)
            assert found.decoder == "pyav" and found == replace(decode_video(request), decoder="pyav")
        else:
            with pytest.raises(SampleFailure) as caught:
                decode_surely(decoder, request)
            assert (caught.value.status, caught.value.message) == (status, error)
