"""What passes between data, model and losses, and the shape letters of the whole project.

Shape letters: `B` videos in a micro-batch, `T` frames, `P` patches, `L` text tokens, `G` global
prompts, `N` local prompts per frame, `K` prompted depth, `D` width of a tower, `E` joint embedding,
`H` heads, `Q` queries, `V` gallery videos. `C` captions of a batch (`C = B` in training).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class VideoTextBatch:
    """A micro-batch as the loader hands it over, on the CPU.

    Attributes:
        frames: uint8 `[B, T, 3, H, W]`, not normalised (a quarter of the bytes to the device).
        tokens: int64 `[C, L]`, zero padding after end-of-text.
        video_index: int64 `[C]`, which of the `B` videos each caption describes.
        keys: the `B` sample keys.
    """

    frames: Tensor
    tokens: Tensor
    video_index: Tensor
    keys: tuple[str, ...]

    def pin_memory(self) -> "VideoTextBatch":
        """The same batch in page-locked memory, for asynchronous copies to a GPU."""
        return VideoTextBatch(self.frames.pin_memory(), self.tokens.pin_memory(), self.video_index, self.keys)


def normalise_frames(frames: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """uint8 `[..., 3, H, W]` in 0-255 to `dtype`, zero mean and unit deviation per channel.

    Done on the device of `frames`; `mean` and `std` are of the 0-1 range, as CLIP states them.
    """
    scale = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32, device=frames.device).view(3, 1, 1)
    offset = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32, device=frames.device).view(3, 1, 1)
    return (frames.float() * scale - offset).to(dtype)
