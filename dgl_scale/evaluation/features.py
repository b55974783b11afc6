"""Features of a split or a slice of it, and how slices become one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgl_scale.errors import DataError
from dgl_scale.evaluation.ranking_input import check_finite


@dataclass(frozen=True)
class Features:
    """Video and caption features, on the CPU.

    Attributes:
        video: float32 `[V, E]`.
        text: float32 `[Q, E]`, all captions of these videos, a video's captions in its own order.
        video_index: int64 `[Q]`, which of the `V` videos each caption describes.
        tokens: int64 `[Q, L]`, what the text tower saw; `L` is the same in all slices.
        keys: the `V` sample keys.
        scale: the model's logit scale (100 in CLIP); scores are `scale` times the cosine.
    """

    video: Tensor
    text: Tensor
    video_index: Tensor
    tokens: Tensor
    keys: tuple[str, ...]
    scale: float


def join_features(parts: Sequence[Features]) -> Features:
    """The features of consecutive slices as those of the whole.

    Captions of equal tokens get the feature of the first of them: the same caption in two batches of other
    shapes differs in its last bits, which would break ties by chance (MSR-VTT 1k-A has 995 distinct captions).

    Raises:
        DataError: no videos at all, two of one key, or a feature that is not finite (names the sample).
    """
    parts = [part for part in parts if part.keys]
    if not parts:
        raise DataError("there is no video to evaluate; check the split's shards")
    keys = tuple(key for part in parts for key in part.keys)
    if len(set(keys)) != len(keys):
        double = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"sample key {double} occurs {keys.count(double)} times in the split; build the shards again")
    sizes = torch.tensor([len(part.keys) for part in parts])
    joined = Features(
        video=torch.cat([part.video for part in parts]),
        text=torch.cat([part.text for part in parts]),
        video_index=torch.cat([part.video_index + offset for part, offset in zip(parts, sizes.cumsum(0) - sizes, strict=True)]),
        tokens=torch.cat([part.tokens for part in parts]),
        keys=keys,
        scale=parts[0].scale,
    )
    check_finite(joined.video, keys, "video")
    check_finite(joined.text, [f"a caption of {keys[v]}" for v in joined.video_index.tolist()], "text")
    return replace(joined, text=_share_equal_captions(joined.text, joined.tokens))


def _share_equal_captions(text: Tensor, tokens: Tensor) -> Tensor:
    _, group = torch.unique(tokens, dim=0, return_inverse=True)  # [Q]
    first = torch.full((len(tokens),), len(tokens), dtype=torch.int64)
    first = first.scatter_reduce(0, group, torch.arange(len(tokens)), "amin")
    return text[first[group]]
