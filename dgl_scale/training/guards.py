"""Checks that a run is what it says: finite, not exploding, the same on all ranks, over weights that stay frozen."""

import hashlib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from dgl_scale import distributed
from dgl_scale.errors import DglError

_NUM_KEYS = 8


def check_finite_loss(loss: float, step: int, features: Sequence[Tensor], keys: Sequence[str]) -> None:
    """Stop on all ranks when the loss of the global batch is not finite. Collective where it is not.

    Args:
        loss: the same on all ranks.
        step: the optimizer step that would be taken.
        features: of this rank.
        keys: of this rank's samples.

    Raises:
        DglError: names the step, the ranks whose features are not finite, and their samples.
    """
    if math.isfinite(loss):
        return
    is_own = not all(bool(torch.isfinite(part).all()) for part in features)
    origins = _name_ranks(is_own, keys)
    raise DglError(f"loss is {loss} at step {step}; {origins}; lower optim.lr, or look at these samples").on_all_ranks()


def check_finite_gradient(norm: float | None, step: int, keys: Sequence[str]) -> None:
    """Stop on all ranks when the global gradient's norm is not finite. Collective where it is not.

    Raises:
        DglError: names the step and the samples.
    """
    if norm is None or math.isfinite(norm):
        return
    raise DglError(
        f"the gradient's norm is {norm} at step {step} though the loss is finite; {_name_ranks(True, keys)}; "
        "lower optim.lr, or use training.precision fp32 or bf16"
    ).on_all_ranks()


class ExplosionGuard:
    """Stops a run whose loss stays far above that of a model that knows nothing.

    Args:
        factor: of the chance loss, log(global batch size).
        patience: so many steps on end.
    """

    def __init__(self, factor: float | None, global_batch_size: int, patience: int = 20) -> None:
        self._limit = math.inf if factor is None else factor * math.log(max(2, global_batch_size))
        self._patience = patience
        self._count = 0

    def check(self, loss: float, step: int) -> None:
        """Note the loss of a step, the same on all ranks.

        Raises:
            DglError: on all ranks.
        """
        self._count = self._count + 1 if loss > self._limit else 0
        if self._count >= self._patience:
            raise DglError(
                f"the loss has been above {self._limit:.3g} (training.max_loss_factor times chance) for {self._patience} steps, "
                f"it is {loss:.4g} at step {step}; lower optim.lr, or set training.max_loss_factor to null"
            ).on_all_ranks()


def check_synchronised(parameters: Iterable[tuple[str, nn.Parameter]], step: int) -> None:
    """Compare the trained parameters of all ranks, bit for bit. Collective.

    Under ZeRO-3 each rank holds a part of its own, and nothing is compared.

    Raises:
        DglError: on all ranks; names those that differ from rank 0.
    """
    whole = [parameter for _, parameter in parameters if not hasattr(parameter, "ds_id")]
    digests = distributed.gather_objects(_digest(whole))
    different = [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]
    if different:
        raise DglError(
            f"the prompts of rank {', '.join(different)} differ from rank 0's at step {step}: a defective device or memory, or an unequal "
            "software; the checkpoints before are whole, run the same command on other hosts"
        ).on_all_ranks()


class FrozenWeights:
    """Remembers a model's frozen parameters and buffers by hash, and checks that training left them alone."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._digests = self._read()

    def check(self) -> None:
        """Compare with the beginning.

        Raises:
            DglError: names the first weights that changed.
        """
        now = self._read()
        changed = [name for name, digest in self._digests.items() if now.get(name) != digest]
        if changed:
            raise DglError(
                f"frozen weights changed during training on rank {distributed.rank()}: {', '.join(changed[:3])} ({len(changed)} in all); "
                "defective memory or a defect of the program, do not use this run"
            )

    def _read(self) -> dict[str, str]:
        frozen = [(name, p) for name, p in self._model.named_parameters() if not p.requires_grad]
        # ZeRO-3 keeps this rank's part in `ds_tensor`, and the parameter itself empty.
        parts = [(name, getattr(p, "ds_tensor", p)) for name, p in frozen]
        return {name: _digest([tensor]) for name, tensor in [*parts, *self._model.named_buffers()]}


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().flatten().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _name_ranks(is_own: bool, keys: Sequence[str]) -> str:
    """`rank 1: samples a, b …` for each rank where `is_own`; all ranks where it is so nowhere. Collective."""
    answers = distributed.gather_objects((is_own, list(keys)))
    chosen = [rank for rank, (is_origin, _) in enumerate(answers) if is_origin] or list(range(len(answers)))
    return "; ".join(f"rank {rank}: samples {_shorten(answers[rank][1])}" for rank in chosen)


def _shorten(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_NUM_KEYS]) + (" …" if len(keys) > _NUM_KEYS else "")
