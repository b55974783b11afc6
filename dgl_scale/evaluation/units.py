"""Units of encoding: batches of videos at fixed boundaries, with their captions.

Features depend on the composition of their batch in the last bits. So the unit that is encoded, stored and redone is
a whole batch: `evaluation.batch_size` videos from a multiple of it on, in the order of the split's index, and all
captions of these videos, again in batches of that size. Who encodes a unit, when, and after how many attempts then
changes nothing. The two halves, frames and captions, are encoded and stored apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dgl_scale.batch import normalise_frames
from dgl_scale.data.frames import choose_frames, decode_frames
from dgl_scale.data.index import SplitIndex
from dgl_scale.data.reader import SampleReader
from dgl_scale.data.tokenizer import Tokenizer
from dgl_scale.errors import DataError
from dgl_scale.evaluation.ranking_input import check_finite
from dgl_scale.model.frozen_clip import EvaluatedModel


@dataclass(frozen=True)
class Unit:
    """Videos `start` to `stop` of a split (its folder or address), and which halves are wanted."""

    split: str
    start: int
    stop: int
    frames: bool = True
    captions: bool = True


@dataclass(frozen=True)
class EncodedCaptions:
    """All captions of a unit's videos, a video's captions in its own order.

    Attributes:
        features: float32 `[Q, E]`.
        tokens: int64 `[Q, L]`.
        video_index: int64 `[Q]`, which of the unit's videos each caption describes.
        texts: the `Q` captions.
        twins: of each video, the video id of the clip that differs from it in one thing only, or None.
    """

    features: Tensor
    tokens: Tensor
    video_index: Tensor
    texts: list[str]
    twins: list[str | None]


@dataclass(frozen=True)
class EncodedUnit:
    """What was wanted of a unit.

    Attributes:
        video: float32 `[V, E]` on the CPU.
    """

    unit: Unit
    video: Tensor | None
    captions: EncodedCaptions | None


@dataclass(frozen=True)
class ReadUnit:
    """A unit's samples, ready for the model.

    Attributes:
        frames: uint8 `[V, T, 3, H, W]`, None where they are not wanted.
        captions: of each video.
        twins: as in `EncodedCaptions`.
    """

    unit: Unit
    frames: Tensor | None
    captions: list[list[str]]
    twins: list[str | None]


def split_units(split: str, num_videos: int, batch_size: int, *, frames: bool = True, captions: bool = True) -> list[Unit]:
    """The units of a split, in order."""
    starts = range(0, num_videos, batch_size)
    return [Unit(split, start, min(start + batch_size, num_videos), frames, captions) for start in starts]


def read_unit(unit: Unit, index: SplitIndex, reader: SampleReader, image_size: int, num_frames: int, *, pin_memory: bool) -> ReadUnit:
    """Read a unit's samples, each once, and decode the frames that the model sees.

    Raises:
        DataError: a sample cannot be read; retrieval among the others would be another task.
    """
    count = unit.stop - unit.start if unit.frames else 0
    frames = torch.empty(count, num_frames, 3, image_size, image_size, dtype=torch.uint8, pin_memory=pin_memory and count > 0)
    captions, twins = [], []
    for i in range(unit.start, unit.stop):
        sample = reader.read(i)
        captions.append(sample.metadata.captions)
        twins.append(sample.metadata.extra.get("twin"))
        if unit.frames:
            chosen = choose_frames(len(sample.frames), num_frames)
            try:
                decode_frames(sample.frames, chosen, image_size, frames[i - unit.start].numpy())
            except DataError as error:
                raise DataError(f"sample {sample.key} of {index.folder}: {error}") from error
    return ReadUnit(unit, frames if unit.frames else None, captions, twins)


@torch.no_grad()
def encode_unit(
    model: EvaluatedModel, tokenizer: Tokenizer, read: ReadUnit, *, batch_size: int, dtype: torch.dtype, device: torch.device
) -> EncodedUnit:
    """Features of what was read, float32 on the CPU.

    Args:
        batch_size: captions encoded at once.
        dtype: compute type of the frames.
    """
    video = captions = None
    if read.frames is not None:
        video = encode_frames(model, read.frames, dtype, device)
    if read.unit.captions:
        texts = [caption for of_video in read.captions for caption in of_video]
        tokens = tokenizer(texts)
        counts = torch.tensor([len(of_video) for of_video in read.captions])
        video_index = torch.repeat_interleave(torch.arange(len(counts)), counts)
        captions = EncodedCaptions(encode_captions(model, tokens, batch_size), tokens, video_index, texts, read.twins)
    return EncodedUnit(read.unit, video, captions)


def encode_frames(model: EvaluatedModel, frames: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uint8 `[B, T, 3, H, W]` to float32 `[B, E]` on the CPU."""
    on_device = frames.to(device, non_blocking=frames.is_pinned())
    return model.encode_video(normalise_frames(on_device, model.image_mean, model.image_std, dtype)).float().cpu()


def encode_captions(model: EvaluatedModel, tokens: Tensor, batch_size: int) -> Tensor:
    """Int64 `[Q, L]`, on the CPU (where the model finds their ends without waiting for a GPU), to float32 `[Q, E]` on the CPU."""
    return torch.cat([model.encode_text(part).float().cpu() for part in torch.split(tokens, batch_size)])


def check_unit(encoded: EncodedUnit, keys: Sequence[str]) -> None:
    """Refuse NaN and infinity.

    Args:
        keys: of the unit's videos.

    Raises:
        DataError: names the first sample with such a feature.
    """
    if encoded.video is not None:
        check_finite(encoded.video, keys, "video")
    if encoded.captions is not None:
        names = [f"a caption of {keys[v]}" for v in encoded.captions.video_index.tolist()]
        check_finite(encoded.captions.features, names, "text")


def check_split(index: SplitIndex) -> None:
    """Refuse a split that retrieval cannot be measured on, before anything is encoded.

    Raises:
        DataError: a video without captions, or a key that occurs twice; names the first.
    """
    without = np.flatnonzero(index.num_captions == 0)
    if len(without):
        raise DataError(
            f"sample {index.keys[without[0]]} of {index.folder} has no caption ({len(without)} of {index.num_videos} have none), "
            "so it cannot be a query; build the shards from annotations with captions"
        )
    keys, counts = np.unique(index.keys.astype(str), return_counts=True)
    if len(keys) < index.num_videos:
        double = keys[counts > 1][0]
        raise DataError(f"sample key {double} occurs {counts.max()} times in {index.folder}; build the shards again")
