"""What a ranking takes: features, whole or in parts, and which video each caption describes; what cannot be ranked is refused."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dgl_scale.errors import DataError

Parts = Sequence[Tensor]
"""Features in consecutive parts `[n_i, E]`: a list, or an object that loads part i whenever it is asked for `parts[i]`."""


def in_parts(features: Tensor | Parts) -> Parts:
    """What is whole is one part."""
    return (features,) if isinstance(features, Tensor) else features


def blocks(size: int, block_size: int) -> list[slice]:
    """`size` rows in consecutive blocks of `block_size`; the last one may be shorter."""
    return [slice(start, min(start + block_size, size)) for start in range(0, size, block_size)]


def check_ranking_input(text: Parts, video: Parts, target: Tensor) -> int:
    """Refuse what cannot be ranked; returns the number of videos.

    Raises:
        DataError: there is nothing to rank, a feature is not finite, or as `check_target`.
    """
    num_texts, num_videos = sum(len(part) for part in text), sum(len(part) for part in video)
    if num_texts == 0 or num_videos == 0:
        raise DataError(f"nothing to rank: {num_texts} captions and {num_videos} videos")
    for kind, name, parts in (("text", "caption", text), ("video", "video", video)):
        first = 0
        for part in parts:
            check_finite(part, [f"{name} {first + i}" for i in range(len(part))], kind)
            first += len(part)
    check_target(target, num_texts, num_videos)
    return num_videos


def check_target(target: Tensor, num_texts: int, num_videos: int) -> None:
    """Refuse captions of videos that are not there, and videos that no caption describes.

    Raises:
        DataError: says which.
    """
    if target.shape != (num_texts,):
        raise DataError(f"{num_texts} captions need as many videos that they describe, got {list(target.shape)}")
    if int(target.min()) < 0 or int(target.max()) >= num_videos:
        raise DataError(f"captions belong to videos {int(target.min())} to {int(target.max())}, but there are {num_videos}")
    without = (torch.bincount(target, minlength=num_videos) == 0).nonzero()
    if len(without):
        raise DataError(f"video {int(without[0])} has no caption ({len(without)} of {num_videos} have none), so it cannot be a query")


def check_finite(features: Tensor, names: Sequence[str], kind: str) -> None:
    """Refuse NaN and infinity, which a ranking would turn into a good score.

    Raises:
        DataError: names the first such row.
    """
    if bool(torch.isfinite(features.sum())):
        return  # a sum with NaN or infinity in it is not finite; one that overflowed is looked at below
    good = torch.isfinite(features).all(dim=-1)
    if not bool(good.all()):
        bad = int((~good).nonzero()[0])
        raise DataError(
            f"{kind} feature of {names[bad]} is not finite ({int((~good).sum())} of {len(features)} are not); "
            "the checkpoint or the precision is broken, evaluate another checkpoint or in fp32"
        )
