"""Sizes of a CLIP; everything about it but its weights."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TowerShape:
    """Sizes of a tower.

    Attributes:
        activation: `quick_gelu`, or the `approximate` argument of GELU (`none`, `tanh`).
        has_layer_scale: whether each residual branch is scaled per channel.
    """

    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    activation: str
    norm_eps: float
    has_layer_scale: bool


@dataclass(frozen=True)
class ClipShape:
    """Everything about a CLIP but its weights; sizes in pixels and tokens."""

    vision: TowerShape
    text: TowerShape
    embed_dim: int
    image_size: int
    patch_size: int
    has_ln_pre: bool
    context_length: int
    vocab_size: int

    @property
    def num_patches(self) -> int:
        """Patches of a frame."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def end_of_text(self) -> int:
        """Id of the end-of-text token: CLIP's vocabularies end with it."""
        return self.vocab_size - 1
