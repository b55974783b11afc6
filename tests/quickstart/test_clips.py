"""The world on disk: readable clips, the same bytes every time, only what is missing redone."""

import json
import os
import subprocess
import sys

import av
import numpy as np
import pytest

from dgl_scale.errors import DataError
from dgl_scale.quickstart.clips import (
    generator_digest,
    make_world,
    read_annotations,
)
from dgl_scale.quickstart.rendering import render_clip
from dgl_scale.quickstart.scenes import plan_world

SEED, SCALE = 3, 0.02


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world") / "w", SEED, scale=SCALE, workers=1)


def test_table_lists_every_clip(world):
    clips = plan_world(SEED, scale=SCALE)
    rows = read_annotations(world.folder)
    assert [row["video_id"] for row in rows] == [clip.video_id for clip in clips]
    assert world.num_clips == {"train": 40, "validation": 4, "test": 4}
    assert world.num_drawn == len(clips)
    by_id = {row["video_id"]: row for row in rows}
    for row, clip in zip(rows, clips, strict=True):
        assert tuple(row["captions"]) == clip.captions and row["split"] == clip.split
        assert by_id[row["twin"]]["twin"] == row["video_id"]
        assert row["scene"] == json.loads(json.dumps(clip.scene.to_json()))
        assert (world.folder / row["path"]).is_file()


def test_clips_are_h264_and_look_like_their_scene(world):
    clip = plan_world(SEED, scale=SCALE)[-1]
    with av.open(str(world.folder / "videos" / f"{clip.video_id}.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.average_rate == 12
        stream.thread_type = "NONE"
        decoded = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])
    frames = render_clip(clip.scene)
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < 12


def test_second_run_draws_nothing_and_a_damaged_or_missing_clip_only_itself(world):
    table = world.annotations.read_bytes()
    assert make_world(world.folder, SEED, scale=SCALE).num_drawn == 0
    videos = sorted((world.folder / "videos").iterdir())
    originals = [videos[2].read_bytes(), videos[5].read_bytes()]
    videos[2].write_bytes(originals[0][:100])
    videos[5].unlink()
    assert make_world(world.folder, SEED, scale=SCALE).num_drawn == 2
    assert [videos[2].read_bytes(), videos[5].read_bytes()] == originals
    assert world.annotations.read_bytes() == table


def test_bytes_do_not_depend_on_workers_or_on_an_interruption(world, tmp_path):
    class Stop(Exception):
        pass

    def stop_soon(done: int, _total: int) -> None:
        if done >= 10:
            raise Stop

    with pytest.raises(Stop):
        make_world(tmp_path / "w", SEED, scale=SCALE, workers=2, progress=stop_soon)
    assert not (tmp_path / "w" / "annotations.jsonl").exists()
    seen = []
    again = make_world(tmp_path / "w", SEED, scale=SCALE, workers=2, progress=lambda *done: seen.append(done))
    assert again.num_drawn == 48 - seen[0][0] < 48 and seen[-1] == (48, 48)
    for path in sorted(world.folder.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (again.folder / path.relative_to(world.folder)).read_bytes()


@pytest.mark.parametrize(("change", "named"), [({"seed": 4}, "seed is 3"), ({"scale": 0.03}, "scale is 0.02")])
def test_another_world_in_the_folder_is_refused(world, change, named):
    arguments = {"seed": SEED, "scale": SCALE} | change
    with pytest.raises(DataError, match=named):
        make_world(world.folder, **arguments)


def test_a_folder_of_somebody_elses_videos_is_refused(tmp_path):
    (tmp_path / "videos").mkdir()
    with pytest.raises(DataError, match="choose another folder"):
        make_world(tmp_path, SEED, scale=SCALE)


@pytest.mark.parametrize("arguments", [{"scale": 0.0}, {"scale": 1.5}, {"workers": 0}])
def test_arguments_out_of_range_are_refused(tmp_path, arguments):
    with pytest.raises(DataError, match="must be"):
        make_world(tmp_path, SEED, **arguments)


def test_table_missing_or_damaged_is_one_line(tmp_path):
    with pytest.raises(DataError, match="make the world first"):
        read_annotations(tmp_path)
    (tmp_path / "annotations.jsonl").write_text("{broken\n")
    with pytest.raises(DataError, match="damaged"):
        read_annotations(tmp_path)


ENCODE_DIGEST = """
import hashlib
from dgl_scale.quickstart.clips import encode_clip
from dgl_scale.quickstart.rendering import render_clip
from dgl_scale.quickstart.scenes import plan_world
print(*(hashlib.sha256(encode_clip(render_clip(clip.scene))).hexdigest() for clip in plan_world(3, scale=0.02)[:8]))
"""


def test_encoding_does_not_depend_on_what_memory_held_before():
    # glibc fills freed memory with this byte: an encoder that reads what nobody wrote gives other bytes.
    outputs = {
        subprocess.run(
            [sys.executable, "-c", ENCODE_DIGEST], env={**os.environ, "MALLOC_PERTURB_": value}, capture_output=True, check=True
        ).stdout
        for value in ("0", "170")
    }
    assert len(outputs) == 1


def test_digest_is_stable_within_one_version():
    assert generator_digest() == generator_digest() and len(generator_digest()) == 16
