"""Bytes that one rank sends in a training step, by ZeRO stage: the formula. `dgl-scale bench training --network` measures beside it."""

import math
from dataclasses import dataclass

_FEATURE_BYTES = 4


@dataclass(frozen=True)
class NetworkBytes:
    """What one rank sends in a step, by purpose.

    Attributes:
        features: gathered for the loss of the global batch, in float32 always.
        gradients: of the trained parameters.
        prompts: updated by one rank each, and gathered (stages 1 and 2).
        weights: frozen and trained, gathered where they are needed (stage 3).
    """

    features: float
    gradients: float
    prompts: float
    weights: float

    @property
    def total(self) -> float:
        """All purposes."""
        return self.features + self.gradients + self.prompts + self.weights


def network_bytes(
    stage: int,
    world: int,
    pairs: int,
    embed_dim: int,
    num_trained: int,
    num_reached: int,
    num_frozen: int,
    bytes_per_value: int,
    accumulation: int = 1,
    kept: float = math.inf,
) -> NetworkBytes:
    """What a rank sends in a step without activation checkpointing.

    An all-gather of n bytes in all lets each rank send (W - 1) / W n, an all-reduce twice that. Stages 2 and 3 reduce gradients after
    every micro-batch. Stage 3 gathers all weights once a step, and those that it does not keep in each pass: forward and backward, with
    accumulation also forward without gradient, and all of them in every micro-batch (docs/performance-training.md has it measured).

    Args:
        pairs: a rank and step, in all its micro-batches.
        num_reached: trained numbers that get a gradient; stage 0 reduces all trained ones, the others these.
        bytes_per_value: of weights and gradients, in the compute type.
        accumulation: micro-batches a step.
        kept: numbers of weights that stage 3 keeps from one pass to the next. Of the others all are counted in each pass, though a backward
            pass does without some, such as embeddings.
    """
    passes, numbers = 2 if accumulation == 1 else 3 * accumulation, num_trained + num_frozen
    share = (world - 1) / world * bytes_per_value
    return NetworkBytes(
        features=(world - 1) * pairs * 2 * embed_dim * _FEATURE_BYTES,
        gradients=2 * share * (num_reached if stage else num_trained) * (accumulation if stage >= 2 else 1),
        prompts=share * num_trained if stage in (1, 2) else 0.0,
        weights=share * (numbers + (passes - 1) * max(0.0, numbers - kept)) if stage == 3 else 0.0,
    )
