"""A model over a split's shards: each video and each caption encoded once, in batches that depend on the config only."""

from dataclasses import dataclass
from pathlib import Path

import torch

from dgl_scale.config import RunConfig
from dgl_scale.data.index import SplitIndex
from dgl_scale.data.loader import evaluation_batches
from dgl_scale.data.reader import SampleReader
from dgl_scale.data.tokenizer import Tokenizer
from dgl_scale.evaluation.features import Features, join_features
from dgl_scale.evaluation.retrieval import Retrieval, evaluate_features
from dgl_scale.evaluation.units import encode_captions, encode_frames
from dgl_scale.model import DGL, build_model, load_prompts
from dgl_scale.model.backbone import supports_prompts
from dgl_scale.model.frozen_clip import EvaluatedModel, FrozenClip
from dgl_scale.model.precision import DTYPES


@dataclass(frozen=True)
class Annotations:
    """What a split's samples say of themselves.

    Attributes:
        captions: sample key to its captions, in order.
        twins: sample key to the key of the clip that differs from it in one thing only; empty where none is annotated.
    """

    captions: dict[str, list[str]]
    twins: dict[str, str]


def load_model(config: RunConfig, prompts: Path | None, device: torch.device) -> DGL:
    """The model of a run with these prompts; with None, the frozen CLIP of its config (averaged frame features).

    Raises:
        CheckpointError: the prompts belong to another model.
        ConfigError: the config asks for prompts of no kind (`latent_space: null`) but a prompts file is given.
    """
    model_config = config.model if prompts is not None else config.model.model_copy(update={"latent_space": None})
    model = build_model(model_config, seed=config.seed, dtype=_compute_dtype(config), device=device)
    if prompts is not None:
        load_prompts(model, prompts)
    return model.eval()


def build_model_of(config: RunConfig, *, frozen: bool, device: torch.device) -> EvaluatedModel:
    """The model of a run, to encode with: with prompts that are to be loaded, or the frozen CLIP of its config, of any kind."""
    if frozen and not supports_prompts(config.model.clip):
        return FrozenClip(config.model, seed=config.seed, dtype=_compute_dtype(config), device=device)
    if frozen:
        return load_model(config, None, device)
    return build_model(config.model, seed=config.seed, dtype=_compute_dtype(config), device=device).eval()


def encode_split(
    model: DGL, index: SplitIndex, tokenizer: Tokenizer, *, start: int, stop: int, config: RunConfig, device: torch.device
) -> Features:
    """Features of the videos `start` to `stop` of a split and of all their captions; none where `start == stop`.

    Slices that start at multiples of `evaluation.batch_size` give bitwise the features of the whole split.
    """
    batch_size = config.evaluation.batch_size
    # On a CPU more processes would only take cores from the model.
    num_workers = config.data.num_workers if device.type == "cuda" else 0
    batches = evaluation_batches(
        index,
        tokenizer,
        model.image_size,
        config.model.num_frames,
        start=start,
        stop=stop,
        batch_size=batch_size,
        num_workers=num_workers,
        stall_timeout_s=config.data.stall_timeout_s,
    )
    video, text, video_index, tokens, keys = [], [], [], [], list[str]()
    was_training = model.training
    model.eval()
    # Not inference_mode: ZeRO-3 gathers and releases parameters in the forward pass and writes to them.
    with torch.no_grad():
        for batch in batches:
            video.append(encode_frames(model, batch.frames, _compute_dtype(config), device))
            text.append(encode_captions(model, batch.tokens, batch_size))
            video_index.append(batch.video_index + len(keys))
            tokens.append(batch.tokens)
            keys += batch.keys
        scale = float(model.logit_scale.exp())
    model.train(was_training)
    empty = torch.empty(0, 0)
    return Features(
        video=torch.cat(video) if keys else empty,
        text=torch.cat(text) if keys else empty,
        video_index=torch.cat(video_index) if keys else empty.long().flatten(),
        tokens=torch.cat(tokens) if keys else empty.long(),
        keys=tuple(keys),
        scale=scale,
    )


def _compute_dtype(config: RunConfig) -> torch.dtype:
    assert config.training.precision != "auto", "whoever starts an evaluation decides the precision for all its workers"
    return DTYPES[config.training.precision]


def evaluate_model(model: DGL, index: SplitIndex, tokenizer: Tokenizer, config: RunConfig, device: torch.device) -> Retrieval:
    """Encode a whole split in this process and rank it."""
    features = join_features([encode_split(model, index, tokenizer, start=0, stop=index.num_videos, config=config, device=device)])
    twins = read_annotations(index, features.keys).twins
    return evaluate_features(features, config.evaluation, twins=twins, seed=config.seed)


def read_annotations(index: SplitIndex, keys: tuple[str, ...]) -> Annotations:
    """Captions and twins (`extra["twin"]`, a video id) of these samples."""
    position = {str(key): i for i, key in enumerate(index.keys)}
    key_of = {str(video_id): str(key) for video_id, key in zip(index.video_ids, index.keys, strict=True)}
    reader = SampleReader(index)
    captions, twins = {}, {}
    for key in keys:
        metadata = reader.read(position[key]).metadata
        captions[key] = metadata.captions
        if (twin := metadata.extra.get("twin")) in key_of:
            twins[key] = key_of[twin]
    reader.close()
    return Annotations(captions, twins)
