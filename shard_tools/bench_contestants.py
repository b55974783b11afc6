"""What `bench shards` times, each in a process of its own on one core: our build, the bare loop, and the ffmpeg chain."""

import bisect
import functools
import math
import multiprocessing
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import decord
import numpy as np
import simplejpeg
import webdataset
from PIL import Image

from dgl_scale.errors import DglError
from dgl_scale.shards_config import ShardsConfig
from shard_tools.annotations.videos import AnnotatedVideo
from shard_tools.backends import open_source, quiet_decoders, read_with_decord
from shard_tools.plan import PlannedSample, ShardPlan
from shard_tools.video import choose_frames, encode_frame, stored_size
from shard_tools.video_request import VideoRequest
from shard_tools.writer import build_shard

_FPS = 3
_SHORT_SIDE = 224
_QUALITY = 95
_TIMEOUT_S = 600
_QUALITY_CLIPS = 4
# The best quality that ffmpeg documents, with full colour resolution as ours.
_JPEG_OPTIONS = ("-pix_fmt", "yuvj444p", "-q:v", "2")


@dataclass(frozen=True)
class Result:
    """What a contestant took, its child processes included: wall-clock and CPU seconds; and the bytes that it wrote."""

    seconds: float
    cpu_seconds: float
    bytes: int


def ffmpeg_program() -> str | None:
    """The path of ffmpeg, None where there is none."""
    return shutil.which("ffmpeg")


def run_contestant(name: str, parts: Sequence[Sequence[Path]], cores: Sequence[int], work: Path) -> list[Result]:
    """Run a contestant once for each part of the clips, all at the same time, each on its core.

    Raises:
        DglError: it failed.
    """
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(len(parts)), context.Queue()
    processes = []
    for part, core in zip(parts, cores, strict=True):
        processes.append(context.Process(target=_contend, args=(name, list(part), core, work, barrier, queue)))
        processes[-1].start()
    for process in processes:
        process.join(_TIMEOUT_S)
        if process.exitcode != 0:
            for other in processes:
                other.kill()
            raise DglError(f"the contestant {name!r} failed (exit {process.exitcode}); its message is above")
    return [queue.get() for _ in processes]


def _contend(name: str, clips: list[Path], core: int, work: Path, barrier: Barrier, queue: Any) -> None:
    os.sched_setaffinity(0, {core})
    quiet_decoders()
    if name == "bare":
        # The limit need not look first.
        for clip in clips:
            _scaled_size(clip)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        barrier.wait()
        begin, cpu_begin = time.perf_counter(), _cpu_seconds()
        written = _CONTESTANTS[name](clips, Path(folder))
        queue.put(Result(time.perf_counter() - begin, _cpu_seconds() - cpu_begin, written))


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _start(clips: list[Path], folder: Path) -> int:
    # What a shard costs whatever is in it: a decoding process, a Parquet file.
    return _build([Path(clips[0].parent) / "there is no such file.mp4"], folder)


def _build(clips: list[Path], folder: Path) -> int:
    config = ShardsConfig(
        dataset="bench", format="folder", videos=str(Path(os.path.commonpath([clip.parent for clip in clips]))), output=""
    )
    samples = tuple(
        PlannedSample(f"{number:06d}", AnnotatedVideo(f"{number}", str(clip.relative_to(config.videos)), ("a caption",), "train"))
        for number, clip in enumerate(clips)
    )
    return sum(shard.bytes for shard in build_shard(ShardPlan("bench-train-000000", "train", samples), config, str(folder)))


def _bare(clips: list[Path], folder: Path) -> int:
    """decord, scaling in its own filter, and JPEG: nothing is checked, timed or kept. The limit."""
    written = 0
    for clip in clips:
        width, height = _scaled_size(clip)
        reader = decord.VideoReader(str(clip), num_threads=1, width=width, height=height)
        written += sum(len(_jpeg(frame, _QUALITY)) for frame in reader.get_batch(_bare_indices(reader)).asnumpy())
    return written


def _bare_pillow(clips: list[Path], folder: Path) -> int:
    """The same with frames scaled by Pillow, as most extraction scripts do."""
    written = 0
    for clip in clips:
        reader = decord.VideoReader(str(clip), num_threads=1)
        for frame in reader.get_batch(_bare_indices(reader)).asnumpy():
            height, width = frame.shape[:2]
            scale = _SHORT_SIDE / min(height, width)
            image = Image.fromarray(frame).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
            written += len(_jpeg(np.asarray(image), _QUALITY))
    return written


@functools.cache
def _scaled_size(clip: Path) -> tuple[int, int]:
    return stored_size(open_source(str(clip)), _SHORT_SIDE)


def _bare_indices(reader: Any) -> list[int]:
    step = reader.get_avg_fps() / _FPS
    return [int(number * step) for number in range(math.ceil(len(reader) / step))]


def _ffmpeg_jpeg(clips: list[Path], folder: Path) -> int:
    """One ffmpeg a clip, JPEG files, then ShardWriter."""
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=1000, verbose=0) as writer:
        for number, clip in enumerate(clips):
            frames = _ffmpeg_frames(clip, folder / f"{number}")
            members = {f"{place:03d}.jpg": frame for place, frame in enumerate(frames)}
            writer.write({"__key__": f"{number:06d}", **members, "json": {"caption": "a caption"}})
    return sum(path.stat().st_size for path in folder.glob("*.tar"))


def _ffmpeg_mp4(clips: list[Path], folder: Path) -> int:
    """video2dataset's chain with its two subsamplers (resolution, frame rate) in one ffmpeg; it runs one for each."""
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=1000, verbose=0) as writer:
        for number, clip in enumerate(clips):
            output = folder / f"{number}.mp4"
            _ffmpeg(clip, ["-reset_timestamps", "1", str(output)])
            writer.write({"__key__": f"{number:06d}", "mp4": output.read_bytes(), "txt": "a caption", "json": {"caption": "a caption"}})
            output.unlink()
    return sum(path.stat().st_size for path in folder.glob("*.tar"))


def _ffmpeg_frames(clip: Path, folder: Path) -> list[bytes]:
    folder.mkdir()
    _ffmpeg(clip, [*_JPEG_OPTIONS, str(folder / "%03d.jpg")])
    frames = [path.read_bytes() for path in sorted(folder.iterdir())]
    shutil.rmtree(folder)
    return frames


def _ffmpeg(clip: Path, output: list[str]) -> None:
    scale = f"fps={_FPS},scale=w='if(lt(iw,ih),{_SHORT_SIDE},-2)':h='if(lt(iw,ih),-2,{_SHORT_SIDE})'"
    command = [
        str(ffmpeg_program()),
        "-nostdin",
        "-loglevel",
        "error",
        "-threads",
        "1",
        "-i",
        str(clip),
        "-vf",
        scale,
        "-threads",
        "1",
        *output,
    ]
    subprocess.run(command, check=True, timeout=_TIMEOUT_S)


def _jpeg(frame: np.ndarray, quality: int) -> bytes:
    content: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality, "RGB", "444", fastdct=False)
    return content


_CONTESTANTS = {
    "start": _start,
    "build": _build,
    "bare": _bare,
    "bare with Pillow": _bare_pillow,
    "ffmpeg to JPEG": _ffmpeg_jpeg,
    "ffmpeg to MP4": _ffmpeg_mp4,
}


def compare_jpeg(clips: Sequence[Path], work: Path) -> dict[str, float]:
    """Bytes a frame of ffmpeg's JPEG and of ours at the same PSNR, over the frames of some clips; empty without ffmpeg.

    The reference is the scaled frame before any JPEG. Ours, with each kind of tables, has the lowest quality whose PSNR
    is not below ffmpeg's.
    """
    if ffmpeg_program() is None:
        return {}
    quiet_decoders()
    frames: list[np.ndarray] = []
    theirs: list[bytes] = []
    for number, clip in enumerate(clips[:_QUALITY_CLIPS]):
        source = open_source(str(clip))
        chosen = choose_frames(source.times, source.stop, VideoRequest(""))
        of_clip = list(read_with_decord(str(clip), source, stored_size(source, _SHORT_SIDE), chosen))
        theirs += _ffmpeg_jpegs_of(of_clip, work / f"quality-{number}")
        frames += of_clip
    goal = _psnr(frames, theirs)
    compared = {"ffmpeg -q:v 2": theirs}
    for tables in ("standard", "flat"):
        quality = _quality_for(goal, frames, tables)
        for each in (quality, _QUALITY):
            compared[f"ours, {tables} tables, quality {each}"] = [encode_frame(frame, each, tables) for frame in frames]
    figures: dict[str, float] = {}
    for name, encoded in compared.items():
        figures[f"{name}, PSNR"] = round(_psnr(frames, encoded), 2)
        figures[f"{name}, bytes a frame"] = sum(map(len, encoded)) // len(encoded)
    return figures


def _quality_for(goal: float, frames: Sequence[np.ndarray], tables: str) -> int:
    """The lowest quality, from 50, whose PSNR is not below `goal`."""
    qualities = range(50, 101)
    found = bisect.bisect_left(qualities, goal, key=lambda each: _psnr(frames, [encode_frame(frame, each, tables) for frame in frames]))
    return qualities[min(found, len(qualities) - 1)]


def _ffmpeg_jpegs_of(frames: Sequence[np.ndarray], folder: Path) -> list[bytes]:
    folder.mkdir()
    height, width = frames[0].shape[:2]
    command = [str(ffmpeg_program()), "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-i", "pipe:"]
    raw = b"".join(frame.tobytes() for frame in frames)
    subprocess.run([*command, *_JPEG_OPTIONS, str(folder / "%06d.jpg")], input=raw, check=True, timeout=_TIMEOUT_S)
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def _psnr(frames: Sequence[np.ndarray], encoded: Sequence[bytes]) -> float:
    errors = [
        np.mean((simplejpeg.decode_jpeg(content).astype(np.float32) - frame) ** 2) for frame, content in zip(frames, encoded, strict=True)
    ]
    return float(10 * np.log10(255**2 / np.mean(errors)))
