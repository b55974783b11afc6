"""Similarity matrices from files of other programs: NumPy, PyTorch, Parquet. Nothing is unpickled."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from numpy.typing import NDArray

from dgl_scale.errors import DataError

MATRIX, VIDEOS = "similarity", "videos"
"""Names of the matrix and of the captions' videos in files that hold several arrays."""

Array = NDArray[Any]


def load_similarity(path: Path) -> tuple[Array, Array | None]:
    """A matrix, and the column of each row's video if the file has that too.

    `.npy`: the matrix, mapped and not read. `.npz`: its one array, or `similarity` and, if there, `videos`. `.pt`, `.pth`: a tensor,
    or a dictionary of tensors with those names. `.parquet`: a row a caption, a column of numbers a video in the order of the
    file, and, if there, a column `videos`.

    Raises:
        DataError: the file is missing, damaged, of another kind, or holds no such array.
    """
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise DataError(f"{path} is none of the files that are read: {', '.join(_READERS)}")
    try:
        found = read(path)
    except (OSError, ValueError, EOFError, RuntimeError, pickle.UnpicklingError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path} as a {path.suffix} file: {str(error).strip().splitlines()[0]}") from error
    if isinstance(found, np.ndarray):
        return found, None
    if MATRIX in found:
        return found[MATRIX], found.get(VIDEOS)
    if len(found) == 1:
        return next(iter(found.values())), None
    raise DataError(f"{path} holds {', '.join(sorted(found)) or 'nothing'}; name the matrix {MATRIX!r}")


def _read_npy(path: Path) -> Array:
    array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _read_npz(path: Path) -> Mapping[str, Array]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read_pt(path: Path) -> Array | Mapping[str, Array]:
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if isinstance(found, torch.Tensor):
        return _as_array(found)
    if isinstance(found, Mapping):
        return {str(name): _as_array(value) for name, value in found.items() if isinstance(value, torch.Tensor)}
    raise ValueError(f"it holds a {type(found).__name__}, not a tensor")


def _read_parquet(path: Path) -> Mapping[str, Array]:
    table = pyarrow.parquet.read_table(path)
    names = [name for name in table.column_names if name != VIDEOS]
    if not names:
        raise ValueError("it has no columns of scores")
    found = {MATRIX: np.column_stack([table[name].to_numpy() for name in names])}
    return {**found, VIDEOS: table[VIDEOS].to_numpy()} if VIDEOS in table.column_names else found


def _as_array(tensor: torch.Tensor) -> Array:
    # NumPy has no bfloat16.
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
    return array


_READERS: Mapping[str, Callable[[Path], Array | Mapping[str, Array]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_pt,
    ".pth": _read_pt,
    ".parquet": _read_parquet,
}
