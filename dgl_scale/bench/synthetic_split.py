"""A split of made-up videos for benchmarks: one shard, its Parquet and index.json, as a shard build leaves them."""

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import simplejpeg

from dgl_scale.data.samples import Sample, SampleMetadata, encode_members
from dgl_scale.files import atomic_file, write_json

_NAME = "synthetic-test-000000"
_FPS = 3.0
_WORDS = ("a", "man", "dog", "red", "car", "left", "of", "then", "plays", "the", "small", "guitar", "in", "street")


def write_synthetic_split(folder: Path, *, num_videos: int, num_frames: int, side: int, captions: int = 1) -> None:
    """Videos of smooth noise, whose JPEGs are about as large as those of real footage, with captions of ten words.

    Args:
        folder: is made; of the split.
        num_frames: stored frames a video.
        side: of the stored frames, in pixels.
        captions: a video.
    """
    rows: list[dict[str, Any]] = []
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(num_videos):
            sample = _sample(i, num_frames, side, captions)
            start = tar.offset
            for name, data in encode_members(sample):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            rows.append({"key": sample.key, "video_id": sample.key, "offset": start, "size": tar.offset - start})
    data = content.getvalue()
    for row in rows:
        digest = hashlib.sha256(data[row["offset"] : row["offset"] + row["size"]]).hexdigest()
        row |= {"status": "ok", "n_frames": num_frames, "n_captions": captions, "sha256": digest}
    with atomic_file(folder / f"{_NAME}.tar") as stream:
        stream.write(data)
    with atomic_file(folder / f"{_NAME}.parquet") as stream:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    entry = {"url": f"{_NAME}.tar", "nsamples": num_videos, "filesize": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_json(folder / "index.json", {"wids_version": 1, "shardlist": [entry]})


def _sample(i: int, num_frames: int, side: int, captions: int) -> Sample:
    rng = np.random.default_rng(i)
    # Coarse noise blown up, and a little fine noise: about 30 KB a frame of 224 pixels.
    coarse = rng.integers(0, 256, (num_frames, side // 8 + 1, side // 8 + 1, 3), dtype=np.int16)
    frames = np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2)[:, :side, :side] + rng.integers(-4, 5, (num_frames, side, side, 3))
    pixels = np.clip(frames, 0, 255).astype(np.uint8)
    jpegs = [simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=95, colorsubsampling="444") for frame in pixels]
    texts = [" ".join(rng.choice(_WORDS, 10)) for _ in range(captions)]
    times = [t / _FPS for t in range(num_frames)]
    metadata = SampleMetadata(f"video{i:06d}", texts, "test", 0.0, None, num_frames / _FPS, _FPS, times, side, side, "synthetic")
    return Sample(f"video{i:06d}", jpegs, metadata)
