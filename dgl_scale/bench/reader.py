"""Speed of reading training batches, beside its limit and its rival on the same shards, in one run.

    dgl-scale bench reader [--shards FOLDER] [--rounds 3]

All read the same number of clips, on one core, in turns: the bare decoder (simplejpeg over frames that are in memory
already), our indexed loader, and webdataset's usual pipeline (shuffle buffer, `decode("torchrgb")`, then the choice of
frames). The medians of CPU time count, which a busy machine disturbs least; ratios are the claim.
"""

import hashlib
import io
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image

from dgl_scale.data.frames import choose_frames, decode_frames
from dgl_scale.data.index import SplitIndex, load_split
from dgl_scale.data.loader import TrainLoader
from dgl_scale.data.reader import SampleReader
from dgl_scale.data.samples import Sample, SampleMetadata, encode_members
from dgl_scale.data.tokenizer import load_tokenizer
from dgl_scale.entry import Parser, run_command
from dgl_scale.errors import ExitCode
from dgl_scale.files import write_json

_TARGETS = {"of the bare decoder": 0.8, "against webdataset": 2.0}
_BATCH = 16
_JPEG_QUALITY = 95
_SHUFFLE_BUFFER = 1000

Pass = Callable[[], None]


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns an exit code."""
    parser = Parser(prog="bench reader", description="Measure the loader beside bare JPEG decoding and beside webdataset's usual pipeline.")
    parser.add_argument("--shards", metavar="FOLDER", help="measure on this split (default: shards of drawn clips)")
    parser.add_argument("--clips", type=int, default=192, metavar="N", help="how many clips (default 192)")
    parser.add_argument("--stored-frames", type=int, default=30, metavar="N", help="frames of a drawn clip (default 30)")
    parser.add_argument("--frames", type=int, default=12, metavar="T", help="frames taken of a clip (default 12)")
    parser.add_argument("--image-size", type=int, default=224, metavar="N", help="side of a frame (default 224)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often each contestant runs (default 5)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    if min(arguments.rounds, arguments.stored_frames, arguments.frames, arguments.image_size) < 1 or arguments.clips < _BATCH:
        parser.error(f"--clips must be {_BATCH} or more, the other numbers 1 or more")
    return run_command(lambda: _measure(arguments), debug=arguments.debug)


def _measure(arguments: Any) -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bench-reader-") as work:
        folder = Path(arguments.shards or work)
        if not arguments.shards:
            sys.stderr.write(f"drawing {arguments.clips} clips\n")
            _write_split(folder, arguments.clips, arguments.stored_frames, arguments.image_size)
        index = load_split(folder)
        figures = _figures(index, arguments.clips, arguments.frames, arguments.image_size, arguments.rounds)
    if arguments.json:
        write_json(Path(arguments.json), figures)
    _report(figures)
    return ExitCode.DONE


def _figures(index: SplitIndex, num_clips: int, num_frames: int, image_size: int, rounds: int) -> dict[str, Any]:
    num_steps = min(num_clips, index.num_videos) // _BATCH
    contestants = {
        "bare decoder": _bare(index, num_steps, num_frames, image_size),
        "our loader": _ours(index, num_steps, num_frames, image_size),
        "webdataset": _webdataset(index, num_steps, num_frames, image_size),
    }
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            begin = time.process_time()
            run()
            if number:  # the first round warms caches
                spent[name].append(time.process_time() - begin)
        sys.stderr.write(f"round {number} of {rounds}\n")
    ours = statistics.median(spent["our loader"])
    rivals = {"of the bare decoder": "bare decoder", "against webdataset": "webdataset"}
    return {
        "clips": num_steps * _BATCH,
        "bytes_per_clip": int(index.size.mean()),
        "stored_frames_per_clip": round(float(index.num_frames.mean()), 1),
        "clips_per_cpu_second": {name: round(num_steps * _BATCH / statistics.median(values), 1) for name, values in spent.items()},
        "ratios": {name: round(statistics.median(spent[rival]) / ours, 3) for name, rival in rivals.items()},
    }


def _bare(index: SplitIndex, num_steps: int, num_frames: int, image_size: int) -> Pass:
    reader = SampleReader(index)
    clips = [reader.read(i).frames for i in range(num_steps * _BATCH)]
    out = np.empty((num_frames, 3, image_size, image_size), dtype=np.uint8)

    def run() -> None:
        for frames in clips:
            decode_frames(frames, choose_frames(len(frames), num_frames), image_size, out)

    return run


def _ours(index: SplitIndex, num_steps: int, num_frames: int, image_size: int) -> Pass:
    loader = TrainLoader(
        index,
        load_tokenizer("ViT-B-32", 32),
        image_size,
        num_frames=num_frames,
        global_batch_size=_BATCH,
        micro_batch_size=None,
        seed=0,
        rank=0,
        world_size=1,
        num_workers=0,
        train_frames="random",
        last_batch="drop",
        max_corrupt_fraction=0.0,
    )
    # So many clips, whatever the number of captions; as in training, in the order of a shuffled epoch.
    return lambda: [None for _ in loader.steps(0, num_steps)].clear()


def _webdataset(index: SplitIndex, num_steps: int, num_frames: int, image_size: int) -> Pass:
    import webdataset

    def take_frames(sample: dict[str, Any]) -> Any:
        frames = [sample[name] for name in sorted(sample) if name.endswith("jpg")]
        chosen = choose_frames(len(frames), num_frames, rng=np.random.default_rng(0))
        return torch.stack([_fit(frames[i], image_size) for i in chosen]), sample["json"]["captions"][0]

    shards = [str(shard) for shard in index.shards]
    pipeline = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(_SHUFFLE_BUFFER).decode("torchrgb").map(take_frames)
    batches = pipeline.batched(_BATCH)

    def run() -> None:
        for _ in islice(batches, num_steps):
            pass

    return run


def _fit(frame: torch.Tensor, image_size: int) -> torch.Tensor:
    """float `[3, H, W]` to `[3, image_size, image_size]`, as our loader does with bytes."""
    height, width = frame.shape[1:]
    short = min(height, width)
    if short != image_size:
        size = (image_size * height // short, image_size * width // short)
        frame = torch.nn.functional.interpolate(frame[None], size, mode="bicubic", antialias=True)[0]
        height, width = size
    top, left = round((height - image_size) / 2), round((width - image_size) / 2)
    return frame[:, top : top + image_size, left : left + image_size]


def _write_split(folder: Path, num_clips: int, num_frames: int, image_size: int, per_shard: int = 64) -> None:
    """A split of drawn clips: soft shapes with the noise at which a frame has the bytes of real footage."""
    import pyarrow
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    listed: list[dict[str, Any]] = []
    for first in range(0, num_clips, per_shard):
        path = folder / f"bench-train-{len(listed):06d}.tar"
        rows: list[dict[str, Any]] = []
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(first, min(first + per_shard, num_clips)):
                sample, start = _drawn_sample(f"clip_{number:06d}", num_frames, image_size, rng), tar.offset
                for name, content in encode_members(sample):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                rows.append({"key": sample.key, "video_id": sample.key, "status": "ok", "offset": start, "size": tar.offset - start})
        content = path.read_bytes()
        for row in rows:
            digest = hashlib.sha256(content[row["offset"] : row["offset"] + row["size"]]).hexdigest()
            row |= {"n_frames": num_frames, "n_captions": 1, "sha256": digest}
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path.with_suffix(".parquet"))
        digest = hashlib.sha256(content).hexdigest()
        listed.append({"url": path.name, "nsamples": len(rows), "filesize": len(content), "sha256": digest})
    write_json(folder / "index.json", {"wids_version": 1, "shardlist": listed})


def _drawn_sample(key: str, num_frames: int, image_size: int, rng: np.random.Generator) -> Sample:
    width = image_size * 4 // 3
    frames = []
    for _ in range(num_frames):
        coarse = Image.fromarray(rng.integers(0, 255, (15, 20, 3), dtype=np.uint8))
        soft = np.asarray(coarse.resize((width, image_size), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(soft + rng.integers(-4, 5, soft.shape, dtype=np.int16), 0, 255).astype(np.uint8)
        frames.append(simplejpeg.encode_jpeg(noisy, quality=_JPEG_QUALITY))
    times = [t / 3 for t in range(num_frames)]
    return Sample(
        key, frames, SampleMetadata(key, [f"clip {key}"], "train", 0.0, None, num_frames / 3, 3.0, times, width, image_size, f"{key}.mp4")
    )


def _report(figures: dict[str, Any]) -> None:
    write = sys.stdout.write
    write(
        f"{figures['clips']} clips of {figures['stored_frames_per_clip']} stored frames and {figures['bytes_per_clip']:,} bytes, "
        "one core, CPU time\n\n"
    )
    for name, rate in figures["clips_per_cpu_second"].items():
        write(f"  {name:<14} {rate:>8.1f} clips a CPU second\n")
    write("\n")
    for name, ratio in figures["ratios"].items():
        write(f"  {name:<22} {ratio:>6.2f} x   target {_TARGETS[name]}: {'met' if ratio >= _TARGETS[name] else 'MISSED'}\n")


if __name__ == "__main__":
    raise SystemExit(main())
