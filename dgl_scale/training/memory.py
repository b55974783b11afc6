"""Memory that is too small for a step: which micro-batch would fit."""

import os
import resource
from dataclasses import dataclass
from typing import cast

import psutil
import torch

from dgl_scale.config import RunConfig
from dgl_scale.errors import DglError
from dgl_scale.model.backbone import load_backbone
from dgl_scale.model.estimate import StepSize, estimate_step, largest_batch
from dgl_scale.model.precision import DTYPES, Precision

_GIB = 1 << 30
# The rest is for the context of CUDA, the allocator's gaps and batches on their way.
_USABLE = 0.9


@dataclass(frozen=True)
class MemoryNeed:
    """What a rank's step needs by the estimate, captions at their full length.

    Attributes:
        needed_bytes: of a micro-batch.
        available_bytes: of the device for this rank.
        largest_micro_batch_size: that fits; 0: none.
    """

    needed_bytes: int
    available_bytes: int
    largest_micro_batch_size: int


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU, where it has no error class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def estimate_memory(config: RunConfig, micro_batch_size: int, device: torch.device) -> MemoryNeed:
    """Compare the estimate of `config`, its precision resolved, with the device's memory."""
    shape = load_backbone(config.model.clip, config.model.pretrained, with_weights=False).shape
    bytes_per_value = DTYPES[cast(Precision, config.training.precision)].itemsize
    recompute, length = config.training.activation_checkpointing, config.data.max_words
    size = StepSize(micro_batch_size, micro_batch_size, config.model.num_frames, length)
    estimate = estimate_step(config.model, shape, size, bytes_per_value=bytes_per_value, activation_checkpointing=recompute)
    available = _device_bytes(device)
    largest = largest_batch(
        config.model,
        shape,
        _USABLE * available,
        caption_length=length,
        bytes_per_value=bytes_per_value,
        activation_checkpointing=recompute,
    )
    return MemoryNeed(estimate.peak_bytes, available, largest)


def memory_error(config: RunConfig, micro_batch_size: int, device: torch.device) -> DglError:
    """One line that says what was tried and which micro-batch fits."""
    need = estimate_memory(config, micro_batch_size, device)
    # Where the estimate is too low, or others use the device too, half is the next to try.
    fitting = min(need.largest_micro_batch_size, micro_batch_size // 2)
    if fitting:
        advice = f"set training.micro_batch_size={fitting}, which changes speed and memory only"
    elif not config.training.activation_checkpointing:
        advice = "not even one pair fits: set training.micro_batch_size=1 and training.activation_checkpointing=true"
    else:
        advice = "not even one pair fits: take ZeRO stage 3 on more ranks (training.deepspeed), fewer frames or a larger device"
    return DglError(
        f"memory of the {device.type} is too small for micro-batches of {micro_batch_size}: {need.available_bytes / _GIB:.1f} GiB, "
        f"the estimate is {need.needed_bytes / _GIB:.1f} GiB; {advice}"
    )


def _device_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    whole = psutil.virtual_memory().total // ranks_here
    return whole if limit == resource.RLIM_INFINITY else min(whole, limit)
