"""Make the quickstart's small CLIP: train it on rendered stills with captions.

    python -m dgl_scale.quickstart.pretrain_clip --out DIR [--steps N] [--seed N]

writes the model config, the tokenizer's merges and the weights in open_clip's formats. The shipped
files in `dgl_scale/quickstart/clip/` were made by this script with its default arguments. It sees
stills only: no clip, no motion, none of the clips' textures, casts and logos.
"""

import argparse
import gzip
import json
import logging
import math
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save
from torch import Tensor, multiprocessing, nn

from dgl_scale.files import atomic_file, write_json
from dgl_scale.quickstart.rendering import IMAGE_SIZE, render_stills
from dgl_scale.quickstart.scenes import Mixture, draw_stills, grammar_words
from dgl_scale.torchvision_import import import_open_clip

CONFIG_NAME = "tiny_clip.json"
WEIGHTS_NAME = "tiny_clip.safetensors"
MERGES_NAME = "tiny_clip_bpe.txt.gz"

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own, so that nothing about this model is special to its users."""
NUM_BYTE_TOKENS = 512
"""CLIP's BPE starts from 256 bytes, each in the middle or at the end of a word."""
NUM_SPECIAL_TOKENS = 2
CAPTION_TOKENS = 16
"""Positions computed in training; the longest caption has 15 tokens with its two ends."""
START_LOGIT_SCALE = math.log(1 / 0.07)
FINAL_LOGIT_SCALE = math.log(100)
"""CLIP's start and CLIP's bound. Training that ends at a third of it left too soft a scale for
prompts to tell two orders apart."""
QUICK_GELU_FACTOR = 1.702
HELD_OUT_SEED = 1_000_003

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """A part of the training with its own schedule."""

    steps: int
    first_batch: int
    """Number of its first batch in the endless stills."""
    mixture: Mixture
    warmup_steps: int
    start_logit_scale: float


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train."""

    steps: int = 1200
    """Of the first phase: things, attributes, words."""
    order_steps: int = 500
    """Of the second phase: who is left and who is right. The first leaves word order at chance: naming
    the things is so much easier that its gradient drowns out the rest. The second consists mostly of
    hard partners, of which the things alone tell nothing."""
    seed: int = 0
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.1
    num_held_out: int = 600
    """Stills of each measurement, an even number."""
    num_processes: int = 2
    """Processes of one thread each, sharing every batch. On busy cores two processes that meet once a
    step are twice as fast as two threads that meet at every operation."""

    def phases(self) -> tuple[Phase, Phase]:
        """Return what to do, in order."""
        return (
            Phase(self.steps, 0, Mixture(), 100, START_LOGIT_SCALE),
            Phase(self.order_steps, self.steps, Mixture(0.1, 0.95, 0.85), 30, FINAL_LOGIT_SCALE),
        )


def render_batch(seed: int, batch: int, count: int, mixture: Mixture, part: slice = slice(None)) -> tuple[Tensor, list[str]]:
    """Return a part of a batch's images, uint8 [n, 3, H, W], and all its `count` captions.

    Batch k of the endless stills is a function of (seed, k) and the mixture.
    """
    stills = draw_stills(np.random.default_rng([seed, batch]), count, mixture)
    first = part.start or 0
    images = torch.from_numpy(render_stills(stills[part], np.random.default_rng([seed, batch, first])))
    return images.permute(0, 3, 1, 2).contiguous(), [still.caption for still in stills]


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Return byte-pair merges in order of learning, after which every word is one token.

    Plain BPE on a list of words of equal count; ties go to the pair that sorts first.
    """
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(word) > 1 for word in pieces):
        counts: dict[tuple[str, str], int] = {}
        for word in pieces:
            for pair in pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        pieces = [_merge(word, best) for word in pieces]
    return merges


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] = merged[-1] + piece
        else:
            merged.append(piece)
    return merged


def write_tokenizer(folder: Path) -> int:
    """Write the merges in the file format of CLIP's tokenizer; return the vocabulary's size."""
    merges = learn_merges(grammar_words())
    # The reader takes every line after the first as a merge, an empty last one too: no newline there.
    text = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)])
    with atomic_file(folder / MERGES_NAME) as stream:
        stream.write(gzip.compress(text.encode("utf-8"), mtime=0))
    return NUM_BYTE_TOKENS + len(merges) + NUM_SPECIAL_TOKENS


def model_config(vocab_size: int) -> dict[str, Any]:
    """Return the model as an open_clip model-config file describes it."""
    return {
        "embed_dim": 128,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": IMAGE_SIZE,
            "layers": 4,
            "width": 128,
            "head_width": 32,
            "patch_size": 16,
        },
        "text_cfg": {
            "context_length": 32,
            "vocab_size": vocab_size,
            "width": 128,
            "heads": 4,
            "layers": 4,
            "tokenizer_kwargs": {"bpe_path": MERGES_NAME},
        },
    }


def build_trainable_clip(config: dict[str, Any], merges: Path) -> tuple[Any, Any]:
    """Return the open_clip model with fresh weights, and its tokenizer."""
    open_clip = import_open_clip()
    tokenizer = open_clip.SimpleTokenizer(str(merges), context_length=config["text_cfg"]["context_length"])
    return open_clip.CLIP(**config), tokenizer


def contrastive_loss(similarity: Tensor, captions: list[str]) -> Tensor:
    """Return the symmetric cross entropy over [B, B] scaled similarities.

    Stills of one batch may share a caption word for word (two of "a red star"); all of them are
    right answers then, with equal weight.
    """
    index = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    ids = torch.tensor([index[caption] for caption in captions])
    targets = (ids[:, None] == ids[None, :]).float()
    targets = targets / targets.sum(dim=1, keepdim=True)  # symmetric, rows and columns sum to 1
    cross_entropy = nn.functional.cross_entropy
    return (cross_entropy(similarity, targets) + cross_entropy(similarity.T, targets)) / 2


def normalise(images: Tensor) -> Tensor:
    """Return uint8 [N, 3, H, W] as float32 with CLIP's mean and deviation."""
    mean = torch.tensor(IMAGE_MEAN).view(3, 1, 1) * 255
    std = torch.tensor(IMAGE_STD).view(3, 1, 1) * 255
    return (images.float() - mean) / std


def encode_images(model: Any, images: Tensor) -> Tensor:
    """Return features [N, E] of length 1 of uint8 images [N, 3, H, W].

    In the last layer only the class token is computed: nothing else of it is read.
    """
    visual = model.visual
    tokens = visual._embeds(normalise(images))
    *layers, last = visual.transformer.resblocks
    for layer in layers:
        tokens = layer(tokens)
    normed = last.ln_1(tokens)
    hidden = tokens[:, :1] + last.attention(normed[:, :1], normed, normed)
    hidden = hidden + last.mlp(last.ln_2(hidden))
    return nn.functional.normalize(visual.ln_post(hidden[:, 0]) @ visual.proj, dim=-1)


def encode_text(model: Any, tokens: Tensor) -> Tensor:
    """Return text features [N, E] of length 1 of tokens [N, L], L up to the context length.

    The model's own method computes the whole context always: three times the work for nothing.
    """
    length = tokens.shape[1]
    hidden = model.token_embedding(tokens) + model.positional_embedding[:length]
    hidden = model.transformer(hidden, attn_mask=model.attn_mask[:length, :length])
    hidden = model.ln_final(hidden)[torch.arange(len(tokens)), tokens.argmax(dim=1)]
    return nn.functional.normalize(hidden @ model.text_projection, dim=-1)


@torch.no_grad()
def measure_held_out(model: Any, tokenizer: Any, count: int) -> dict[str, float]:
    """Return figures, in percent, on stills that no training step sees.

    `recall_at_1`: captions whose own still scores highest (any still of the same caption counts).
    `places`, `colours`: captions that score their own still above its hard partner, which has the
    places or the colours exchanged; chance is 50.
    """
    figures: dict[str, float] = {}
    mixtures = {"recall_at_1": Mixture(), "places": Mixture(0, 1, 1), "colours": Mixture(0, 1, 0)}
    for batch, (name, mixture) in enumerate(mixtures.items()):
        images, captions = render_batch(HELD_OUT_SEED, batch, count, mixture)
        text_features = encode_text(model, tokenizer(captions)[:, :CAPTION_TOKENS])
        similarity = text_features @ encode_images(model, images).T
        if name == "recall_at_1":
            hits = [captions[i] == captions[j] for i, j in enumerate(similarity.argmax(dim=1).tolist())]
        else:
            own = torch.arange(count)
            hits = (similarity[own, own] > similarity[own, own ^ 1]).tolist()
        figures[name] = round(100 * float(np.mean(hits)), 1)
    return figures


def learning_rate(step: int, phase: Phase, peak: float) -> float:
    """Return the rate of a step of a phase: linear warm-up, then half a cosine to zero."""
    if step < phase.warmup_steps:
        return peak * (step + 1) / phase.warmup_steps
    progress = (step - phase.warmup_steps) / max(1, phase.steps - phase.warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def logit_scale(step: int, phase: Phase) -> float:
    """Return the log temperature of a step: from the phase's start to 100 over its first half, then fixed."""
    progress = min(1.0, step / (phase.steps / 2))
    return phase.start_logit_scale + (FINAL_LOGIT_SCALE - phase.start_logit_scale) * progress


def pretrain(folder: Path, recipe: Recipe, *, first_phase: int = 0) -> None:
    """Train and write the three files into `folder`. Progress goes to this module's logger.

    Every phase starts from the weights that the one before stored, rounded as they are; with
    `first_phase` 1 those in the folder are taken.
    """
    config = model_config(write_tokenizer(folder))
    write_json(folder / CONFIG_NAME, config)
    phases = [phase for phase in recipe.phases()[first_phase:] if phase.steps]
    with tempfile.TemporaryDirectory() as meeting_point:
        arguments = (folder, recipe, phases, config, f"file://{meeting_point}/store")
        multiprocessing.spawn(_train_rank, args=arguments, nprocs=recipe.num_processes)  # type: ignore[attr-defined, no-untyped-call]


def _train_rank(rank: int, folder: Path, recipe: Recipe, phases: list[Phase], config: dict[str, Any], meeting_point: str) -> None:
    """Be one of the processes; the first one reports and writes."""
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=recipe.num_processes)
    torch.manual_seed(recipe.seed)  # the same initial weights everywhere
    model, tokenizer = build_trainable_clip(config, folder / MERGES_NAME)
    model.logit_scale.requires_grad_(False)
    for phase in phases:
        _train_phase(model, tokenizer, folder, recipe, phase)
    dist.destroy_process_group()


def _train_phase(model: Any, tokenizer: Any, folder: Path, recipe: Recipe, phase: Phase) -> None:
    if phase.first_batch:
        model.load_state_dict(load_file(folder / WEIGHTS_NAME))
    exchange_activation(model, nn.SiLU(), QUICK_GELU_FACTOR)
    optimizer = build_optimizer(model, recipe)
    reports = dist.get_rank() == 0
    started = time.monotonic()
    for step in range(phase.steps):
        loss = train_step(model, tokenizer, optimizer, recipe, phase, step)
        if reports and (step % 50 == 0 or step == phase.steps - 1):
            figures = json.dumps(measure_held_out(model, tokenizer, recipe.num_held_out))
            logger.info("step %d loss %.4f %.0f s %s", step, loss, time.monotonic() - started, figures)
    dist.barrier()  # all have read the weights that are now replaced
    if reports:
        exchange_activation(model, QuickGELU(), 1 / QUICK_GELU_FACTOR)
        model.logit_scale.data.fill_(FINAL_LOGIT_SCALE)
        save_weights(model, folder / WEIGHTS_NAME)
        logger.info("as stored: %s", json.dumps(measure_held_out(model, tokenizer, recipe.num_held_out)))
    dist.barrier()  # the next phase reads what was written


def train_step(model: Any, tokenizer: Any, optimizer: torch.optim.Optimizer, recipe: Recipe, phase: Phase, step: int) -> float:
    """Take one optimizer step of a phase and return its loss. Collective: every process must call."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, phase, recipe.lr)
    share = recipe.batch_size // dist.get_world_size()
    own = slice(dist.get_rank() * share, (dist.get_rank() + 1) * share)
    count = share * dist.get_world_size()
    images, captions = render_batch(recipe.seed, phase.first_batch + step, count, phase.mixture, own)
    image_features = gather(encode_images(model, images))
    text_features = gather(encode_text(model, tokenizer(captions[own])[:, :CAPTION_TOKENS]))
    scale = math.exp(logit_scale(step, phase))
    loss = contrastive_loss(scale * text_features @ image_features.T, captions)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    gradient = nn.utils.parameters_to_vector([p.grad for p in trained])
    dist.all_reduce(gradient)  # each process knows the part that came through its own features
    nn.utils.vector_to_parameters(gradient, [p.grad for p in trained])
    nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    return loss.item()


def gather(features: Tensor) -> Tensor:
    """Return all processes' features in rank order; gradient flows into this process's own."""
    parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, features.detach().contiguous())
    parts[dist.get_rank()] = features
    return torch.cat(parts)


class QuickGELU(nn.Module):
    """CLIP's activation."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x * sigmoid(1.702 x)."""
        return x * torch.sigmoid(QUICK_GELU_FACTOR * x)


def exchange_activation(model: Any, activation: nn.Module, factor: float) -> None:
    """Set the activation of both towers, and move `factor` into the weights around it.

    QuickGELU(x) = SiLU(1.702 x) / 1.702, and SiLU is one fused operation: a quarter of a step saved.
    """
    for layer in (*model.visual.transformer.resblocks, *model.transformer.resblocks):
        layer.mlp.gelu = activation
        layer.mlp.c_fc.weight.data.mul_(factor)
        layer.mlp.c_fc.bias.data.mul_(factor)
        layer.mlp.c_proj.weight.data.div_(factor)


def build_optimizer(model: Any, recipe: Recipe) -> torch.optim.Optimizer:
    """Return AdamW; biases, norms and other vectors are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-6)


def save_weights(model: Any, path: Path) -> None:
    """Write the state dict as float16 safetensors, and round the model to what was written."""
    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    state["logit_scale"] = torch.tensor(FINAL_LOGIT_SCALE)  # a scalar: float16 would cost 0.02%
    with atomic_file(path) as stream:
        stream.write(save(state))
    model.load_state_dict(state)


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description="Train the quickstart's small CLIP on stills.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the three files")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--order-steps", type=int, default=Recipe.order_steps)
    parser.add_argument("--first-phase", type=int, choices=(0, 1), default=0, help="1: go on from the weights in the folder")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    arguments = parser.parse_args()
    recipe = Recipe(steps=arguments.steps, order_steps=arguments.order_steps, seed=arguments.seed)
    pretrain(arguments.out, recipe, first_phase=arguments.first_phase)


if __name__ == "__main__":
    main()
