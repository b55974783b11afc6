"""An honest rival of DGL: a small transformer over the features of a frozen CLIP's frames.

It sees what averaging throws away, the order of the frames, and is trained with the same loss on the
same pairs; but it cannot change what CLIP sees in a frame or how it reads a caption. It needs no
pass through CLIP while it trains, so it takes seconds.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LOGIT_SCALE = 100.0
"""CLIP's, as for DGL."""


@dataclass(frozen=True)
class PairedFeatures:
    """Frozen features of one split.

    Attributes:
        frame_features: float32 `[N, T, E]` of length 1, T frames of each of N videos in order of time.
        text_features: float32 `[M, E]` of length 1, one row a caption.
        video_index: int64 `[M]`, the video that each caption describes.
    """

    frame_features: Tensor
    text_features: Tensor
    video_index: Tensor


@dataclass(frozen=True)
class HeadRecipe:
    """How the head is trained; chosen on the validation split."""

    steps: int = 600
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.2
    warmup_fraction: float = 0.1
    validate_every_steps: int = 50


class TemporalHead(nn.Module):
    """Frame features `[N, T, E]` to video features `[N, E]` of length 1.

    One pre-norm transformer layer over frames with a learned position each; its average is added to
    the plain average of the frames, and its last projection starts at zero: before training the head
    is the frozen baseline, exactly.
    """

    def __init__(self, num_frames: int, embed_dim: int, *, width: int = 128, num_heads: int = 4) -> None:
        super().__init__()
        self.entry = nn.Linear(embed_dim, width)
        self.positions = nn.Parameter(0.02 * torch.randn(num_frames, width))
        self.layer = nn.TransformerEncoderLayer(
            width, num_heads, dim_feedforward=4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.exit = nn.Linear(width, embed_dim)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def forward(self, frame_features: Tensor) -> Tensor:
        """Return video features `[N, E]` of length 1."""
        hidden = self.layer(self.entry(frame_features) + self.positions)
        raw = frame_features.mean(dim=1) + self.exit(hidden.mean(dim=1))
        return nn.functional.normalize(raw, dim=-1)


def train_temporal_head(train: PairedFeatures, validation: PairedFeatures, *, seed: int, recipe: HeadRecipe | None = None) -> TemporalHead:
    """Train a head and return it as it was where validation text-to-video R@1 was best (ties: earliest)."""
    recipe = recipe or HeadRecipe()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = TemporalHead(train.frame_features.shape[1], train.frame_features.shape[2])
    optimizer = torch.optim.AdamW(_parameter_groups(head, recipe.weight_decay), lr=recipe.lr, betas=(0.9, 0.98), eps=1e-6)
    best_recall, best_state = -1.0, {}
    order = torch.empty(0, dtype=torch.long)
    for step in range(recipe.steps + 1):
        if step % recipe.validate_every_steps == 0 or step == recipe.steps:
            recall = text_to_video_recall(head, validation)
            if recall > best_recall:
                best_recall, best_state = recall, {name: value.clone() for name, value in head.state_dict().items()}
        if step == recipe.steps:
            break
        if len(order) == 0:
            order = torch.randperm(len(train.video_index), generator=generator)
        batch, order = order[: recipe.batch_size], order[recipe.batch_size :]
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, recipe)
        video_features = head(train.frame_features[train.video_index[batch]])
        loss = _symmetric_loss(train.text_features[batch], video_features)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
    head.load_state_dict(best_state)
    return head.eval()


@torch.no_grad()
def text_to_video_recall(head: TemporalHead, features: PairedFeatures) -> float:
    """Return R@1 in percent; rank = 1 + the videos that score higher + half of those that tie."""
    similarity = features.text_features @ head(features.frame_features).T  # [M, N]
    right = similarity.gather(1, features.video_index[:, None])
    ties = (similarity == right).sum(dim=1) - 1
    rank = 1 + (similarity > right).sum(dim=1) + 0.5 * ties
    return 100 * float((rank <= 1).double().mean())


def _symmetric_loss(text_features: Tensor, video_features: Tensor) -> Tensor:
    logits = LOGIT_SCALE * text_features @ video_features.T
    target = torch.arange(len(logits))
    cross_entropy = nn.functional.cross_entropy
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def _learning_rate(step: int, recipe: HeadRecipe) -> float:
    """Linear warm-up, then half a cosine to zero."""
    warmup = max(1, round(recipe.steps * recipe.warmup_fraction))
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (recipe.steps - warmup)))


def _parameter_groups(head: TemporalHead, weight_decay: float) -> list[dict[str, object]]:
    matrices = [p for p in head.parameters() if p.ndim >= 2]
    vectors = [p for p in head.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
