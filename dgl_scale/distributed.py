"""Ranks and collectives; every function also works in one process without a process group.

Beside a group of GPUs there is one of CPUs (`start_control_group`): words and numbers that ranks agree on pass through it,
so that no GPU is waited for.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

Reduction = Literal["mean", "max", "sum"]

# None is the default group, which is right where that is gloo already.
_control_group: Any = None

# What gloo and NCCL say when another rank's process has ended, or the way to it; the words are not part of any interface.
_LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Socket closed",
    "remote process exited",
    "Timed out",
    # The system's, when what was sent is not acknowledged for a quarter of an hour, or a router knows no way.
    "Connection timed out",
    "No route to host",
    "Network is unreachable",
)


def start_control_group() -> None:
    """Open the group of CPUs that agreements pass through. Collective; does nothing without a process group."""
    global _control_group
    _control_group = None
    if dist.is_initialized() and dist.get_backend() != "gloo":
        _control_group = dist.new_group(backend="gloo")


def rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is rank 0, the one that writes files and talks."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def agree(values: Sequence[int]) -> list[int]:
    """The largest of each value over all ranks, the same answer on all. Collective."""
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=_control_group)
    return [int(value) for value in tensor.tolist()]


def reduce_numbers(values: Mapping[str, tuple[float, Reduction]]) -> dict[str, float]:
    """Numbers of all ranks as one each, by name: mean, maximum or sum. Collective; the same names on all ranks."""
    parts = gather_objects([value for value, _ in values.values()])
    columns = zip(*parts, strict=True)
    return {name: _reduce(column, how) for (name, (_, how)), column in zip(values.items(), columns, strict=True)}


def all_gather(tensor: Tensor) -> Tensor:
    """The ranks' tensors `[B, ...]` as `[world_size * B, ...]`, in rank order, without gradient."""
    if world_size() == 1:
        return tensor
    # Old gloo builds lack all_gather_into_tensor for some types; the list form works everywhere.
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def broadcast_object(value: object) -> object:
    """Rank 0's `value` on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_control_group)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """Every rank's `value`, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, value, group=_control_group)
    return box


def lost_peer(error: BaseException) -> str | None:
    """What a collective says of another rank's process that is gone or silent; None if it failed for another reason."""
    if not isinstance(error, RuntimeError):
        return None
    return next((words for words in _LOST_PEER if words in str(error)), None)


def _reduce(values: Sequence[float], how: Reduction) -> float:
    if how == "max":
        return max(values)
    return sum(values) / (len(values) if how == "mean" else 1)
