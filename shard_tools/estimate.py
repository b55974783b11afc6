"""What `build --estimate` prints: shards, bytes and time of a build, by arithmetic from its config; no video is opened, nothing written.

The constants were measured on real footage (docs/performance-shards.md, docs/scale.md); `Assumptions` are what only the user's videos tell.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dgl_scale.shards_config import FramesConfig, ShardsConfig

# JPEG at quality 95; lower qualities make smaller files.
_BYTES_PER_PIXEL = {"standard": 0.42, "flat": 0.30}
_TAR_BLOCK = 512
_METADATA_BYTES = 900
_LEDGER_BYTES, _LEDGER_ROW_BYTES = 3600, 111
_LIST_ENTRY_BYTES = 160
_PIXELS_PER_CORE_S = 400e6
_STORED_FRAMES_PER_CORE_S = 600
_PLANNED_ROWS_PER_S, _SCRATCH_ROW_BYTES = 18_100, 86


@dataclass(frozen=True)
class Assumptions:
    """What a config does not say.

    Attributes:
        samples: videos of all splits, none of them failing.
        clip_seconds: length of a video.
        source_fps: frames a second of a video, all of which are decoded.
        source_size: its width and height, pixels.
        frame_bytes: of a stored frame; None: by the pixels of JPEGs of real footage.
        num_cpus: of the cluster.
    """

    samples: int
    clip_seconds: float = 15.0
    source_fps: float = 30.0
    source_size: tuple[int, int] = (320, 240)
    frame_bytes: float | None = None
    num_cpus: int = 1


@dataclass(frozen=True)
class BuildEstimate:
    """A build; bytes and seconds.

    Attributes:
        frame_bytes: of a stored frame.
        sample_bytes: of a sample in its tar, headers included.
        tars: files; as many Parquets.
        index_bytes: of the Parquets and the lists.
        core_s: of all cores together, starts of processes left out.
        tasks: that run at once.
    """

    frames: int
    width: int
    height: int
    frame_bytes: float
    sample_bytes: float
    tars: int
    tar_bytes: float
    index_bytes: float
    plan_s: float
    plan_scratch_bytes: float
    core_s: float
    tasks: int


def estimate_build(config: ShardsConfig, assumptions: Assumptions) -> BuildEstimate:
    """Estimate a build of `assumptions.samples` like videos."""
    frames = stored_frames(config.frames, assumptions.clip_seconds)
    width, height = _stored_size(config.frames, assumptions.source_size)
    frame_bytes = assumptions.frame_bytes or width * height * _BYTES_PER_PIXEL[config.frames.jpeg_tables]
    sample_bytes = frames * _member_bytes(frame_bytes) + _member_bytes(_METADATA_BYTES)
    per_shard = min(config.max_samples_per_shard, assumptions.samples)
    parts = math.ceil(per_shard * sample_bytes / config.max_shard_bytes) if config.max_shard_bytes else 1
    shards = math.ceil(assumptions.samples / per_shard)
    tars = shards * parts
    source_pixels = assumptions.clip_seconds * assumptions.source_fps * math.prod(assumptions.source_size)
    return BuildEstimate(
        frames=frames,
        width=width,
        height=height,
        frame_bytes=frame_bytes,
        sample_bytes=sample_bytes,
        tars=tars,
        tar_bytes=assumptions.samples * sample_bytes,
        index_bytes=assumptions.samples * _LEDGER_ROW_BYTES + tars * (_LEDGER_BYTES + _LIST_ENTRY_BYTES),
        plan_s=assumptions.samples / _PLANNED_ROWS_PER_S,
        plan_scratch_bytes=assumptions.samples * _SCRATCH_ROW_BYTES,
        core_s=assumptions.samples * (source_pixels / _PIXELS_PER_CORE_S + frames / _STORED_FRAMES_PER_CORE_S),
        tasks=max(1, min(int(assumptions.num_cpus / config.cpus_per_task), config.max_tasks_in_flight, shards)),
    )


def stored_frames(frames: FramesConfig, seconds: float) -> int:
    """Frames that are stored of a video of so many seconds."""
    by_rate = max(1, math.ceil(round(frames.fps * seconds, 6))) if frames.fps is not None else None
    return min(each for each in (by_rate, frames.max_frames) if each is not None)


def estimate_lines(config: ShardsConfig, assumptions: Assumptions) -> Iterator[str]:
    """The lines of the estimate, and what was assumed."""
    found = estimate_build(config, assumptions)
    frame = f"{found.frames} frames of {found.width} × {found.height}, {found.frame_bytes / 1e3:.1f} kB each"
    build_s = found.core_s / found.tasks
    yield f"estimate of shards of {assumptions.samples:,} videos, dataset {config.dataset}; no video was opened"
    yield f"  a sample       {found.sample_bytes:,.0f} bytes: {frame}"
    yield f"  shards         {found.tars:,} tars of {size(found.tar_bytes / found.tars)}, and as many Parquets"
    yield f"  storage        {size(found.tar_bytes)}; Parquets and lists {size(found.index_bytes)}"
    yield f"  plan           {duration(found.plan_s)} on one core, {size(found.plan_scratch_bytes)} of scratch"
    yield f"  build          {found.core_s / 3600:,.1f} core hours"
    rate = f"{found.tasks:,} tasks at once, writing {size(found.tar_bytes / build_s)}/s"
    yield f"  the whole      {duration(found.plan_s + build_s)} with {rate}"
    yield "assumed"
    source = "{} × {}".format(*assumptions.source_size)
    yield f"  videos of {assumptions.clip_seconds:g} s (--clip-seconds), {source} (--source-size), {assumptions.source_fps:g} frames/s"
    if assumptions.frame_bytes is None:
        yield f"  {_BYTES_PER_PIXEL[config.frames.jpeg_tables]:g} bytes a pixel of JPEG, as real footage at quality 95 (--frame-bytes)"
    yield (
        f"  a core decodes {_PIXELS_PER_CORE_S / 1e6:g} million pixels a second, and scales, compresses and writes "
        f"{_STORED_FRAMES_PER_CORE_S} frames a second"
    )
    yield f"  {assumptions.num_cpus:,} cores (--num-cpus); a task a shard, {config.max_tasks_in_flight:,} at most (max_tasks_in_flight)"


def size(count: float) -> str:
    """Bytes in the decimal unit that suits them."""
    for unit, name in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count / 1e3:,.1f} kB"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.0f} s"


def _stored_size(frames: FramesConfig, source: tuple[int, int]) -> tuple[int, int]:
    if frames.short_side is None:
        return source
    scale = frames.short_side / min(source)
    return round(scale * source[0]), round(scale * source[1])


def _member_bytes(content: float) -> float:
    """Of a member of a tar: a header, and content that ends anywhere in its last block."""
    return _TAR_BLOCK + content + _TAR_BLOCK / 2
