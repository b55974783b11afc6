"""Distributed training of DGL prompts over a frozen CLIP for text-video retrieval."""

__version__ = "0.1.0"
