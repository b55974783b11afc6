"""Which folder relative paths mean: the one the user stands in, also when Ray runs the job elsewhere.

`ray job submit --working-dir .` runs a job in a temporary copy of the submitter's folder. Results
written there would vanish with it, and videos are not in it.
"""

import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from dgl_scale.errors import ConfigError
from dgl_scale.shards_config import ShardsConfig
from dgl_scale.storage.urls import is_url

_COPY_MARK = "/runtime_resources/working_dir_files/"


def resolve_paths(config: ShardsConfig) -> ShardsConfig:
    """The config with absolute `annotations`, `videos`, `output` and files of a dataset's section.

    `~` is the home folder, URLs stay as they are.

    Raises:
        ConfigError: a path is relative, this is Ray's copy of a folder, and the original is not known.
    """
    paths: dict[str, Any] = {
        name: _resolve(name, value) for name in ("annotations", "videos", "output") if (value := getattr(config, name))
    }
    section = config.dataset_section
    if section is not None:
        paths[config.format] = section.with_files(lambda key, path: _resolve(f"{config.format}.{key}", path))
    return config.model_copy(update=paths)


def _resolve(key: str, path: str) -> str:
    path = os.path.expanduser(path)
    if is_url(path) or os.path.isabs(path):
        return path
    base = submit_folder()
    if base is None:
        raise ConfigError(
            f"{key}: {path!r} is relative, and this Ray job runs in a temporary copy of the submitter's folder; "
            f"give an absolute path ({key}=/...) or install the checkout with pip install -e"
        )
    return os.path.normpath(base / path)


def submit_folder() -> Path | None:
    """The folder that relative paths start from; None if a Ray job's folder cannot be known.

    In a Ray job it is the checkout from which the package is installed in editable mode.
    """
    folder = Path.cwd()
    return _checkout() if _COPY_MARK in f"{folder}/" else folder


def _checkout() -> Path | None:
    for distribution in metadata.distributions(name="dgl-scale"):
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        url = urlparse(origin.get("url", ""))
        folder = Path(unquote(url.path))
        if origin.get("dir_info", {}).get("editable") and url.scheme == "file" and folder.is_dir():
            return folder
    return None
