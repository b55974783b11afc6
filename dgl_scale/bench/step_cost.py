"""Time, operations and memory of a step: any function that runs forward and backward once."""

import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Step = Callable[[], object]


@dataclass(frozen=True)
class Memory:
    """Bytes beyond what was allocated before the step (weights, optimizer, inputs).

    Attributes:
        peak: the most at any moment of the step.
        saved: kept by autograd from the forward to the backward pass, each storage once, parameters not counted.
    """

    peak: int
    saved: int


def time_in_turn(steps: Mapping[str, Step], *, rounds: int, device: torch.device, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each step in each round, all of them in turn, so that a slower moment of the machine meets them alike."""
    for step in steps.values():
        for _ in range(warm_up):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            _wait(device)
            start = time.perf_counter()
            step()
            _wait(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def count_flops(step: Step) -> float:
    """Operations of the matrix products and attention of a step, as PyTorch's counter has them."""
    # The counter knows the attention kernels of GPUs only.
    aten = torch.ops.aten
    on_cpu = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        step()
    return float(counter.get_total_flops())


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


def measure_memory(step: Step, frozen: nn.Module, device: torch.device) -> Memory:
    """Memory of a step; `frozen` names the parameters that are not activations. Slow: it watches every operation."""
    saved = _SavedStorages(frozen)
    with saved.hooks():
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return Memory(torch.cuda.max_memory_allocated(device) - before, saved.total)
    with _AllocationCounter() as allocations:
        step()
    return Memory(allocations.peak, saved.total)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _SavedStorages:
    """Bytes of the distinct storages that autograd saves."""

    def __init__(self, frozen: nn.Module) -> None:
        self._known = {parameter.untyped_storage().data_ptr() for parameter in frozen.parameters()}
        self._alive: list[Tensor] = []
        self.total = 0

    def hooks(self) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self._alive.append(tensor.detach())  # an address is not used again while its owner lives
            self.total += storage.nbytes()
        return tensor


class _AllocationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes that tensors made while it is active hold at once. Scratch inside a kernel is not seen."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes: dict[int, int] = {}
        self._now = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in known:
                self._watch(leaf.untyped_storage())
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._now -= self._sizes.pop(key, 0)
