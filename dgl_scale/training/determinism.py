"""Runs that are equal bit by bit on equal hardware."""

import os

import torch


def make_deterministic() -> None:
    """Let PyTorch choose reproducible kernels only, and raise where an operation has none. Call before CUDA is first used."""
    # cuBLAS takes its workspace in a fixed way only if told so before it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
