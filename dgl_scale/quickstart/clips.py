"""The small world on disk: H.264 clips, their annotation table, and what a second run may keep.

    FOLDER/videos/<video_id>.mp4
    FOLDER/annotations.jsonl     a row per clip, written last: where it is, every clip is
    FOLDER/world.json            seed, scale, counts and a digest of the generator, written first

A row holds `video_id, path` (relative to FOLDER), `captions, split, twin` (the clip that differs in
order only), `scene` and the file's `sha256`. Same arguments give the same table and, with the same
encoder, the same bytes.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np

from dgl_scale.errors import DataError
from dgl_scale.files import atomic_file, file_sha256, read_json, write_json, write_text
from dgl_scale.quickstart import rendering, scenes
from dgl_scale.quickstart.rendering import render_clip
from dgl_scale.quickstart.scenes import FRAMES_PER_SECOND, Clip, Split, plan_world

ANNOTATIONS_NAME = "annotations.jsonl"
WORLD_NAME = "world.json"
VIDEOS_NAME = "videos"

X264_OPTIONS = {"preset": "veryfast", "crf": "20", "threads": "1", "x264-params": "cpu-independent=1"}
"""One thread: with several, x264's output depends on how they race. And the same algorithms on every CPU: with AVX-512
x264 (core 165) reads memory that nobody wrote, and the same frames give now these bytes, now those."""
CLIPS_PER_TASK = 8

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class World:
    """A finished world on disk."""

    folder: Path
    annotations: Path
    num_clips: dict[Split, int]
    """Clips of each split."""
    num_drawn: int
    """Clips that this call had to draw; the others were there."""


def make_world(
    folder: Path,
    seed: int,
    *,
    scale: float = 1.0,
    workers: int = 2,
    progress: Progress | None = None,
) -> World:
    """Draw and encode the small world into `folder`, only what is missing of it.

    Args:
        folder: receives the videos and the table; made if absent.
        seed: of everything drawn; another seed is another world.
        scale: share of each split's pairs, at most 1 (a smaller world is part of the whole one).
        workers: processes that draw and encode; 1 means this one.
        progress: called as (clips done, clips in all), at first with those that were there.

    Raises:
        DataError: `folder` holds another world, or `scale` or `workers` is out of range.
        DglError: a file cannot be written.
    """
    if not 0 < scale <= 1:
        raise DataError(f"scale is {scale}; it must be above 0 and at most 1")
    if workers < 1:
        raise DataError(f"workers is {workers}; it must be at least 1")
    folder = Path(folder)
    clips = plan_world(seed, scale=scale)
    counts = dict(Counter(clip.split for clip in clips))
    _claim_folder(folder, {"seed": seed, "scale": scale, "generator": generator_digest(), "clips": counts})
    digests = _intact_digests(folder, clips)
    missing = [clip for clip in clips if clip.video_id not in digests]
    report = progress or (lambda done, total: None)
    report(len(digests), len(clips))
    for name, digest in _draw(folder, missing, workers):
        digests[name] = digest
        report(len(digests), len(clips))
    annotations = folder / ANNOTATIONS_NAME
    rows = [_row(clip, digests[clip.video_id]) for clip in clips]
    table = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    if missing or not annotations.exists() or annotations.read_text(encoding="utf-8") != table:
        write_text(annotations, table)
    return World(folder, annotations, counts, len(missing))


def read_annotations(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a finished world's table, in order.

    Raises:
        DataError: there is no table, or a line of it is not JSON.
    """
    path = Path(folder) / ANNOTATIONS_NAME
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; make the world first") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); remove it and make the world again") from error


def generator_digest() -> str:
    """Return a digest of the source that decides how clips look and what they are called."""
    digest = hashlib.sha256()
    for module in (scenes, rendering):
        assert module.__file__ is not None
        digest.update(Path(module.__file__).read_bytes())
    digest.update(json.dumps(X264_OPTIONS, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def encode_clip(frames: np.ndarray) -> bytes:
    """Return uint8 frames [F, H, W, 3] as an H.264 mp4 file."""
    buffer = BytesIO()
    num_frames, height, width, _ = frames.shape
    assert num_frames > 0 and height % 2 == 0 and width % 2 == 0, frames.shape
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=X264_OPTIONS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _claim_folder(folder: Path, world: dict[str, Any]) -> None:
    """Write `world.json`, or check that the one there describes this world."""
    path = folder / WORLD_NAME
    if not path.exists():
        if (folder / ANNOTATIONS_NAME).exists() or (folder / VIDEOS_NAME).exists():
            raise DataError(f"{folder} holds videos but no {WORLD_NAME}; choose another folder")
        write_json(path, world)
        return
    found = read_json(path)
    differing = [key for key in world if not isinstance(found, dict) or found.get(key) != world[key]]
    if differing:
        key = differing[0]
        there = found.get(key) if isinstance(found, dict) else found
        raise DataError(
            f"{folder} holds another world: {key} is {there!r} there and {world[key]!r} here; remove the folder or choose another"
        )


def _intact_digests(folder: Path, clips: list[Clip]) -> dict[str, str]:
    """Return the SHA-256 of each clip that need not be drawn again.

    Clips appear under their names only when whole; once the table is there, a clip whose bytes are
    not those of the table is drawn again.
    """
    listed: dict[str, str] = {}
    if (folder / ANNOTATIONS_NAME).exists():
        listed = {row["video_id"]: row["sha256"] for row in read_annotations(folder)}
    intact: dict[str, str] = {}
    for clip in clips:
        path = folder / _relative_path(clip)
        if path.is_file():
            digest = file_sha256(path)
            if listed.get(clip.video_id, digest) == digest:
                intact[clip.video_id] = digest
    return intact


def _draw(folder: Path, clips: list[Clip], workers: int) -> Iterator[tuple[str, str]]:
    """Yield (video_id, SHA-256) of each clip once its file is there, in any order."""
    tasks = [clips[i : i + CLIPS_PER_TASK] for i in range(0, len(clips), CLIPS_PER_TASK)]
    if workers == 1 or len(tasks) <= 1:
        for task in tasks:
            yield from _draw_task(folder, task)
        return
    # Spawned, not forked: the caller may have threads (a training library's, a progress bar's).
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_follow_parent,
    )
    try:
        # Workers start with the first tasks and inherit the mask: a Ctrl-C while they import would print a traceback.
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        try:
            pending: set[Future[list[tuple[str, str]]]] = {pool.submit(partial(_draw_task, folder, task)) for task in tasks}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        while pending:
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                yield from future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, which stops the workers after their task; die when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _draw_task(folder: Path, clips: list[Clip]) -> list[tuple[str, str]]:
    drawn: list[tuple[str, str]] = []
    for clip in clips:
        content = encode_clip(render_clip(clip.scene))
        _write_clip(folder / _relative_path(clip), content)
        drawn.append((clip.video_id, hashlib.sha256(content).hexdigest()))
    return drawn


def _write_clip(path: Path, content: bytes) -> None:
    with atomic_file(path) as stream:
        stream.write(content)


def _relative_path(clip: Clip) -> str:
    return f"{VIDEOS_NAME}/{clip.video_id}.mp4"


def _row(clip: Clip, digest: str) -> dict[str, Any]:
    return {
        "video_id": clip.video_id,
        "path": _relative_path(clip),
        "captions": list(clip.captions),
        "split": clip.split,
        "twin": clip.twin,
        "scene": clip.scene.to_json(),
        "sha256": digest,
    }
