"""Bytes that one rank sends in a training step, by ZeRO stage: the formula. `dgl-scale bench training --network` measures beside it."""

from dataclasses import dataclass

_FEATURE_BYTES = 4


@dataclass(frozen=True)
class NetworkBytes:
    """What one rank sends in a step, by purpose.

    Attributes:
        features: gathered for the loss of the global batch, in float32 always.
        gradients: of the trained parameters.
        prompts: updated by one rank each, and gathered (stages 1 and 2).
        weights: frozen and trained, gathered where the forward pass needs them (stage 3).
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
) -> NetworkBytes:
    """What a rank sends in a step without activation checkpointing.

    An all-gather of n bytes in all lets each rank send (W - 1) / W n, an all-reduce twice that. Stages 2 and 3 reduce gradients after
    every micro-batch; stage 3 gathers weights once a step, whatever the accumulation (docs/performance-training.md has both measured).

    Args:
        pairs: a rank and step, in all its micro-batches.
        num_reached: trained numbers that get a gradient; stage 0 reduces all trained ones, the others these.
        bytes_per_value: of weights and gradients, in the compute type.
        accumulation: micro-batches a step.
    """
    share = (world - 1) / world * bytes_per_value
    return NetworkBytes(
        features=(world - 1) * pairs * 2 * embed_dim * _FEATURE_BYTES,
        gradients=2 * share * (num_reached if stage else num_trained) * (accumulation if stage >= 2 else 1),
        prompts=share * num_trained if stage in (1, 2) else 0.0,
        weights=share * (num_trained + num_frozen) if stage == 3 else 0.0,
    )
