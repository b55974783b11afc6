"""Real kills of evaluation workers: 1, 2 and 5 of them must give the same bits, however many die.

    python -m tests.scripts.kill_workers --rounds 6 --log docs/kills_evaluation.tsv

Each round encodes a split of 60 made-up videos, on a small CLIP, while SIGKILL meets random workers at random moments.
A task that kills three workers ends an evaluation by design, so at most two kills fall into a round. Appends a line a round.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import torch

from dgl_scale.bench.synthetic_split import write_synthetic_split
from dgl_scale.config import DataConfig, EvaluationConfig, ModelConfig, RunConfig, TrainingConfig
from dgl_scale.data.index import load_split
from dgl_scale.data.tokenizer import load_tokenizer
from dgl_scale.evaluation.embedding import build_model_of
from dgl_scale.evaluation.encoding import EncodedSplit, SplitEncoder
from dgl_scale.ray_cluster import ray_cluster
from tests.evaluation.conftest import CLIP, descendants, process_title

_NUM_VIDEOS = 60
_MAX_KILLS = 2


def main() -> int:
    """Run the rounds; returns 1 if any gave other bits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, required=True)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder, ray_cluster(5):
        split = Path(folder) / "test"
        write_synthetic_split(split, num_videos=_NUM_VIDEOS, num_frames=30, side=64, captions=2)
        (Path(folder) / "clip.json").write_text(json.dumps(CLIP))
        reference, _ = encode(Path(folder), split, 1, 0, chance)
        good = True
        for number in range(arguments.rounds):
            workers = (1, 2, 5)[number % 3]
            started = time.monotonic()
            digest, kills = encode(Path(folder), split, workers, _MAX_KILLS, chance)
            good = good and digest == reference
            verdict = "same bits" if digest == reference else "OTHER BITS"
            with arguments.log.open("a", encoding="utf-8") as log:
                log.write(f"{number}\t{workers}\t{kills}\t{time.monotonic() - started:.0f}\t{digest[:16]}\t{verdict}\n")
    return 0 if good else 1


def encode(folder: Path, split: Path, workers: int, max_kills: int, chance: random.Random) -> tuple[str, int]:
    """SHA-256 of all features, and how many workers were killed."""
    config = RunConfig(
        name="kills",
        output=str(folder),
        model=ModelConfig(clip=str(folder / "clip.json"), num_frames=12),
        data=DataConfig(test=str(split), max_words=16),
        training=TrainingConfig(global_batch_size=1, max_steps=1),
        evaluation=EvaluationConfig(batch_size=2, num_workers=workers, feature_store=None),
    )
    model = build_model_of(config, frozen=False, device=torch.device("cpu"))
    stop, kills = threading.Event(), [0]
    killer = threading.Thread(target=kill_now_and_then, args=(stop, kills, max_kills, chance))
    killer.start()
    try:
        tokenizer = load_tokenizer(config.model.clip, 16)
        with closing(SplitEncoder(config, tokenizer, frozen=False, device="cpu", progress=lambda done, total: None)) as encoder:
            encoded = encoder.encode(model, load_split(split), str(split))
    finally:
        stop.set()
        killer.join()
    return digest_of(encoded), kills[0]


def kill_now_and_then(stop: threading.Event, kills: list[int], max_kills: int, chance: random.Random) -> None:
    """SIGKILL to random workers that are encoding, a moment apart."""
    while kills[0] < max_kills and not stop.wait(chance.uniform(0.0, 0.6)):
        encoding = [pid for pid in descendants(os.getpid()) if process_title(pid).startswith("ray::Encoder.encode")]
        if encoding:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(encoding), signal.SIGKILL)
                kills[0] += 1


def digest_of(encoded: EncodedSplit) -> str:
    """SHA-256 of every feature and token."""
    digest = hashlib.sha256()
    features = encoded.features(100.0)
    for tensor in (features.video, features.text, features.tokens, features.video_index):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
