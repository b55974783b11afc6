"""Import open_clip beside a torchvision whose compiled operators do not load.

open_clip imports torchvision for image transforms. Where torch is a CPU build and torchvision was built for
CUDA, torchvision's compiled library does not load and its import then fails on `torchvision::nms`, an operator
that no CLIP needs. Declaring the schemas lets that import go on. Delete when torchvision guards those two
registrations as it guards its others.
"""

import importlib
from types import ModuleType

import torch

_MISSING_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# A Library's schemas live as long as the object.
_libraries: list[torch.library.Library] = []


def import_open_clip() -> ModuleType:
    """The `open_clip` module, whether or not torchvision's compiled operators load.

    Raises:
        ImportError: open_clip or torchvision is not installed or broken in another way.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        _declare_missing_operators()
    return importlib.import_module("open_clip")


def _declare_missing_operators() -> None:
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in _MISSING_OPERATORS:
        library.define(f"{name}{_SCHEMA}")  # type: ignore[no-untyped-call]
    _libraries.append(library)
