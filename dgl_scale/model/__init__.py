"""DGL and the frozen CLIP under it."""

from dgl_scale.model.dgl import DGL, build_model
from dgl_scale.model.weights import load_prompts, read_prompts_metadata, save_prompts

__all__ = ["DGL", "build_model", "load_prompts", "read_prompts_metadata", "save_prompts"]
