"""What DGL must beat, on the same clips: the frozen CLIP, and a small temporal head over its frame features."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dgl_scale.batch import normalise_frames
from dgl_scale.config import RunConfig
from dgl_scale.data.index import load_split
from dgl_scale.data.loader import evaluation_batches
from dgl_scale.data.tokenizer import Tokenizer, load_tokenizer
from dgl_scale.evaluation.embedding import load_model, read_annotations
from dgl_scale.evaluation.features import Features, join_features
from dgl_scale.evaluation.provenance import package_versions
from dgl_scale.evaluation.results import RESULTS, read_results, write_results
from dgl_scale.evaluation.retrieval import evaluate_features
from dgl_scale.model import DGL
from dgl_scale.quickstart.temporal_head import PairedFeatures, TemporalHead, train_temporal_head

_FROZEN, _HEAD = "frozen-clip", "temporal-head"


def evaluate_rivals(config: RunConfig, runs: Path, seeds: Sequence[int], device: str) -> dict[str, Path]:
    """Evaluation folders of the rivals on the test split, by name: `frozen-clip` and `temporal-head-seed<n>`.

    Those that are there for the same shards are kept.

    Raises:
        DataError: shards cannot be read.
    """
    names = [_FROZEN, *(f"{_HEAD}-seed{seed}" for seed in seeds)]
    folders = {name: runs / name / "evaluation" / "test" for name in names}
    test = load_split(str(config.data.test))
    missing = [name for name, folder in folders.items() if not _is_current(folder, test.digest)]
    if not missing:
        return folders
    # Many small operations: a second thread wins nothing alone, and on a busy machine waits for the first at each one.
    torch.set_num_threads(1)
    model = load_model(config, None, torch.device(device))
    tokenizer = load_tokenizer(config.model.clip, config.data.max_words)
    splits = {split: _encode_frames(model, tokenizer, config, split, device) for split in ("train", "validation", "test")}
    total = sum(parameter.numel() for parameter in model.parameters())
    for name in missing:
        started = time.monotonic()
        head = None if name == _FROZEN else _train_head(splits, int(name.removeprefix(f"{_HEAD}-seed")))
        _evaluate(name, head, splits["test"], config, folders[name], total, started)
    return folders


def _is_current(folder: Path, digest: str) -> bool:
    return (folder / RESULTS).exists() and read_results(folder)["shards"] == digest


def _encode_frames(model: DGL, tokenizer: Tokenizer, config: RunConfig, split: str, device: str) -> tuple[Features, Tensor]:
    """Features with averaged frames, and the frame features `[V, T, E]` themselves, float32 on the CPU."""
    index = load_split(str(getattr(config.data, split)))
    frames, text, video_index, tokens, keys = [], [], [], [], list[str]()
    sizes = {"start": 0, "stop": index.num_videos, "batch_size": config.evaluation.batch_size, "num_workers": 0}
    batches = evaluation_batches(index, tokenizer, model.image_size, config.model.num_frames, **sizes)
    with torch.inference_mode():
        for batch in batches:
            pixels = normalise_frames(batch.frames.to(device), model.image_mean, model.image_std, torch.float32)
            frames.append(model.frame_features(pixels).float().cpu())
            text.append(model.encode_text(batch.tokens).float().cpu())
            video_index.append(batch.video_index + len(keys))
            tokens.append(batch.tokens)
            keys += batch.keys
    frame_features = torch.cat(frames)
    video = F.normalize(frame_features.mean(dim=1), dim=-1)
    features = Features(video, torch.cat(text), torch.cat(video_index), torch.cat(tokens), tuple(keys), float(model.logit_scale.exp()))
    return join_features([features]), frame_features


def _train_head(splits: dict[str, tuple[Features, Tensor]], seed: int) -> TemporalHead:
    paired = {
        split: PairedFeatures(frames.clone(), features.text.clone(), features.video_index.clone())  # inference tensors cannot be trained on
        for split, (features, frames) in splits.items()
    }
    return train_temporal_head(paired["train"], paired["validation"], seed=seed)


def _evaluate(
    name: str,
    head: TemporalHead | None,
    test: tuple[Features, Tensor],
    config: RunConfig,
    folder: Path,
    frozen_parameters: int,
    started: float,
) -> None:
    features, frame_features = test
    trained = 0
    if head is not None:
        with torch.no_grad():
            features = replace(features, video=head(frame_features))
        trained = sum(parameter.numel() for parameter in head.parameters())
    index = load_split(str(config.data.test))
    annotations = read_annotations(index, features.keys)
    retrieval = evaluate_features(features, config.evaluation, twins=annotations.twins, seed=0)
    results: dict[str, Any] = {
        **retrieval.figures,
        "trained_parameters": trained,
        "trained_share": trained / (trained + frozen_parameters),
        "model": {"clip": config.model.clip, "latent_space": None, "num_frames": config.model.num_frames},
        "checkpoint": name,
        "step": None,
        "selection": "nothing was trained or chosen" if head is None else "highest validation text-to-video R@1 while training",
        "split": "test",
        "shards": index.digest,
        "split_folder": str(Path(str(config.data.test)).resolve()),
        "seconds": round(time.monotonic() - started, 3),
        "command": ["dgl-scale", "quickstart"],
        "versions": package_versions(),
    }
    write_results(folder, results, retrieval, features, annotations, step=None)
