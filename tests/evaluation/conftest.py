"""A tiny split with twins and several captions, and a tiny CLIP config with random weights."""

import contextlib
import hashlib
import io
import json
import os
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import simplejpeg
import yaml

from dgl_scale.config import RunConfig
from dgl_scale.config_file import load_config
from dgl_scale.data.samples import Sample, SampleMetadata, encode_members
from tests.s3_server import s3_bucket

NUM_VIDEOS = 11
CLIP = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """The file system of an S3 server on this machine, with a bucket `bucket`."""
    with s3_bucket() as system:
        yield system


def make_sample(i: int) -> Sample:
    """Videos 2i and 2i + 1 are twins; the last has none. Captions hold what an HTML page must escape."""
    rng = np.random.default_rng(i)
    frames = [simplejpeg.encode_jpeg(rng.integers(0, 255, (32, 40, 3), dtype=np.uint8), quality=90) for _ in range(3 + i % 3)]
    captions = [f"clip {i} <script>alert({c})</script> & co" for c in range(1 + i % 3)]
    extra = {} if i == NUM_VIDEOS - 1 else {"twin": f"vid/{i ^ 1}"}
    return Sample(
        f"clip_{i:02d}",
        frames,
        SampleMetadata(f"vid/{i}", captions, "test", 0.0, None, 1.0, 3.0, [0.0] * len(frames), 40, 32, "v.mp4", extra),
    )


def write_split(folder: Path, samples: list[Sample]) -> Path:
    """One shard with its Parquet and index.json, by the standard library and pyarrow alone."""
    folder.mkdir(parents=True)
    stream, rows = io.BytesIO(), []
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            start = tar.offset
            for name, content in encode_members(sample):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            rows.append((sample, start, tar.offset))
    content = stream.getvalue()
    table = [
        {
            "key": sample.key,
            "video_id": sample.metadata.video_id,
            "status": "ok",
            "error": None,
            "offset": start,
            "size": stop - start,
            "n_frames": len(sample.frames),
            "n_captions": len(sample.metadata.captions),
            "duration": 1.0,
            "sha256": hashlib.sha256(content[start:stop]).hexdigest(),
        }
        for sample, start, stop in rows
    ]
    (folder / "tiny-test-000000.tar").write_bytes(content)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), folder / "tiny-test-000000.parquet")
    entry = {
        "url": "tiny-test-000000.tar",
        "nsamples": len(samples),
        "filesize": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (folder / "index.json").write_text(json.dumps({"wids_version": 1, "shardlist": [entry]}))
    return folder


@pytest.fixture(scope="session")
def tiny_split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_split(tmp_path_factory.mktemp("shards") / "test", [make_sample(i) for i in range(NUM_VIDEOS)])


@pytest.fixture
def write_config(tmp_path: Path, tiny_split: Path) -> Callable[..., Path]:
    """`write_config(**evaluation)`: a config file whose run folder lies in `tmp_path`."""

    def write(**evaluation: object) -> Path:
        (tmp_path / "tiny_clip.json").write_text(json.dumps(CLIP))
        values = {
            "name": "tiny",
            "output": str(tmp_path / "runs"),
            "model": {"clip": str(tmp_path / "tiny_clip.json"), "latent_space": "transformer", "num_frames": 3},
            "data": {"test": str(tiny_split), "max_words": 16},
            "training": {"global_batch_size": 4, "max_steps": 1},
            "evaluation": {"batch_size": 2, "bootstrap_samples": 50, "top_k": 5, **evaluation},
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture
def tiny_config(write_config: Callable[..., Path]) -> RunConfig:
    return load_config(RunConfig, write_config())


def descendants(root: int) -> list[int]:
    """All processes below a process, by number."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return sorted(found)


def process_title(pid: int) -> str:
    """The command line of a process, empty when it has ended."""
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "cmdline").read_text()
    return ""


@pytest.fixture
def find_descendants() -> Callable[[int], list[tuple[int, str]]]:
    """`find_descendants(pid)`: number and command line of every process below it."""
    return lambda pid: [(child, process_title(child)) for child in descendants(pid)]


@pytest.fixture
def kill_workers(find_descendants: Callable[[int], list[tuple[int, str]]]) -> Callable[..., int]:
    """`kill_workers(most)`: SIGKILL to at most so many of this cluster's workers, found by the titles that Ray gives its processes."""

    def kill(most: int, title: str = "ray::Encoder") -> int:
        pids = [pid for pid, found in find_descendants(os.getpid()) if found.startswith(title)][:most]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    return kill
