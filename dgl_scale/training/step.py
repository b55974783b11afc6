"""One optimizer step with the exact gradient of the global batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgl_scale.batch import VideoTextBatch, normalise_frames
from dgl_scale.training.engine import TrainingEngine
from dgl_scale.training.guards import check_finite_gradient, check_finite_loss
from dgl_scale.training.loss import contrastive_loss_of, feature_gradients, gather_features, surrogate_loss
from dgl_scale.training.progress import sample_keys
from dgl_scale.training.step_timer import StepTimer


@dataclass(frozen=True)
class Inputs:
    """How batches become the model's inputs.

    Attributes:
        image_mean, image_std: the CLIP's, of the 0-1 range.
        logit_scale: the factor itself; frozen.
    """

    device: torch.device
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    logit_scale: float


@dataclass(frozen=True)
class StepResult:
    """What a step measured.

    Attributes:
        loss: of the global batch.
        recall_at_1: a scalar tensor, percent, within the global batch.
        grad_norm: of the global gradient before clipping; None where it was not measured.
        part_norms: the same by part of the prompts, where asked for.
    """

    loss: float
    recall_at_1: Tensor
    grad_norm: float | None
    part_norms: dict[str, float]


def train_step(
    engine: TrainingEngine,
    inputs: Inputs,
    micro_batches: list[VideoTextBatch],
    lr: float,
    timer: StepTimer,
    *,
    with_part_norms: bool = False,
) -> StepResult:
    """One optimizer step. Collective.

    With several micro-batches the features are first computed without a graph; the loss over all of
    them gives each feature's gradient, which a second forward carries into the prompts. That costs one
    more forward and makes accumulation exact, which averaging contrastive losses is not.

    Raises:
        DglError: on all ranks, a loss or gradient that is not finite.
    """
    keys = sample_keys(micro_batches)
    if len(micro_batches) == 1:
        loss, recall = _whole_backward(engine, inputs, micro_batches[0], keys, timer)
    else:
        loss, recall = _cached_backward(engine, inputs, micro_batches, keys, timer)
    with timer.phase("optimizer"):
        part_norms = engine.gradient_norms(part_of) if with_part_norms else {}
        grad_norm = engine.step(lr, is_boundary=True)
    check_finite_gradient(grad_norm, engine.steps, keys)
    return StepResult(loss, recall, grad_norm, part_norms)


def to_device(inputs: Inputs, batch: VideoTextBatch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Normalised frames `[B, T, 3, H, W]` on the device, and tokens, which the model wants on the CPU."""
    frames = batch.frames.to(inputs.device, non_blocking=True)
    return normalise_frames(frames, inputs.image_mean, inputs.image_std, dtype), batch.tokens


def part_of(name: str) -> str:
    """Which part of the prompts a parameter belongs to, for gradient norms."""
    if "global_prompts" in name:
        return "global_prompts"
    projections = ("prefix", "postfix", "to_text")
    return "text_projections" if any(part in name.split(".") for part in projections) else "latent_space"


def _whole_backward(
    engine: TrainingEngine, inputs: Inputs, batch: VideoTextBatch, keys: Sequence[str], timer: StepTimer
) -> tuple[float, Tensor]:
    with timer.phase("forward"):
        video, text = engine.forward(*to_device(inputs, batch, engine.compute_dtype))
    with timer.phase("communication"):
        gathered = gather_features(text, video)
    with timer.phase("backward"):
        result = contrastive_loss_of(*gathered, inputs.logit_scale)
        engine.backward(result.loss)
        # Read only now, so that a GPU has had the backward pass to do meanwhile.
        loss = float(result.loss.detach())
    check_finite_loss(loss, engine.steps + 1, (video, text), keys)
    return loss, result.recall_at_1


def _cached_backward(
    engine: TrainingEngine, inputs: Inputs, micro_batches: list[VideoTextBatch], keys: Sequence[str], timer: StepTimer
) -> tuple[float, Tensor]:
    pairs = [to_device(inputs, batch, engine.compute_dtype) for batch in micro_batches]
    with timer.phase("forward"), torch.no_grad():
        features = [engine.forward(*pair) for pair in pairs]
        video, text = (torch.cat(parts) for parts in zip(*features, strict=True))

    def timed_gather(text: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        with timer.phase("communication"):
            return gather_features(text, video)

    result, text_gradient, video_gradient = feature_gradients(text, video, inputs.logit_scale, timed_gather)
    loss = float(result.loss)
    check_finite_loss(loss, engine.steps + 1, (video, text), keys)
    size = micro_batches[0].frames.shape[0]
    for i, pair in enumerate(pairs):
        part = slice(i * size, (i + 1) * size)
        with timer.phase("forward"):
            outputs = engine.forward(*pair)
        with timer.phase("backward"):
            engine.backward(surrogate_loss(outputs, (video_gradient[part], text_gradient[part])))
            if i < len(pairs) - 1:
                engine.step(0.0, is_boundary=False)
    return loss, result.recall_at_1
