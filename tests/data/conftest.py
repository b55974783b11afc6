"""Small splits of shards, written with the standard library and pyarrow alone: the format, not our writer."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import simplejpeg

from dgl_scale.data.samples import Sample, SampleMetadata, encode_members


def make_sample(key: str, num_frames: int, captions: list[str], height: int = 24, width: int = 24) -> Sample:
    """Frame t of a sample is smooth, and different from every other frame of every other sample."""
    rng = np.random.default_rng([num_frames, *key.encode()])
    frames = []
    for _ in range(num_frames):
        coarse = rng.integers(0, 255, (3, 3, 3), dtype=np.uint8)
        rows, columns = np.arange(height) * 3 // height, np.arange(width) * 3 // width
        frames.append(simplejpeg.encode_jpeg(np.ascontiguousarray(coarse[rows][:, columns]), quality=95))
    times = [t / 3 for t in range(num_frames)]
    metadata = SampleMetadata(f"id {key}", captions, "train", 0.0, None, num_frames / 3, 30.0, times, width, height, f"{key}.mp4")
    return Sample(key, frames, metadata)


def tar_bytes(sample: Sample) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in encode_members(sample):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        return stream.getvalue()[: tar.offset]


def write_split(folder: Path, samples: list[Sample], per_shard: int = 3) -> Path:
    """A split folder; the first row of each shard's Parquet is a failed video, as builds have them."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for number, first in enumerate(range(0, len(samples), per_shard)):
        content = b""
        rows = [_row("broken", None, 0, b"")]
        for sample in samples[first : first + per_shard]:
            part = tar_bytes(sample)
            rows.append(_row(sample.key, sample, len(content), part))
            content += part
        content += bytes(1024)
        name = f"tiny-train-{number:06d}"
        (folder / f"{name}.tar").write_bytes(content)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{name}.parquet")
        digest = hashlib.sha256(content).hexdigest()
        listed.append({"url": f"{name}.tar", "nsamples": len(rows) - 1, "filesize": len(content), "sha256": digest})
    (folder / "index.json").write_text(json.dumps({"wids_version": 1, "shardlist": listed}))
    return folder


def _row(key: str, sample: Sample | None, offset: int, part: bytes) -> dict[str, object]:
    failed = sample is None
    return {
        "key": key,
        "video_id": f"id {key}",
        "status": "failed" if failed else "ok",
        "error": "cut in half" if failed else None,
        "offset": None if failed else offset,
        "size": None if failed else len(part),
        "n_frames": None if failed else len(sample.frames),
        "n_captions": 1 if failed else len(sample.metadata.captions),
        "duration": None if failed else sample.metadata.duration,
        "sha256": None if failed else hashlib.sha256(part).hexdigest(),
    }


class CodePoints:
    """A tokenizer without open_clip: the code points of a text."""

    max_words = 12

    def __call__(self, texts):
        import torch

        tokens = torch.zeros(len(texts), self.max_words, dtype=torch.int64)
        for row, text in enumerate(texts):
            ids = [ord(c) for c in text[: self.max_words]]
            tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return tokens


@pytest.fixture(scope="session")
def make_split(tmp_path_factory) -> Callable[..., Path]:
    """`make_split(num_captions, **kwargs)`: a split whose video i has `num_captions[i]` captions and 1 + i % 7 frames."""

    def make(num_captions: list[int], **kwargs: int) -> Path:
        samples = [make_sample(f"video_{i}", 1 + i % 7, [f"caption {i}.{c}" for c in range(count)]) for i, count in enumerate(num_captions)]
        return write_split(tmp_path_factory.mktemp("split"), samples, **kwargs)

    return make


@pytest.fixture(scope="session")
def code_points() -> CodePoints:
    return CodePoints()
