"""Configs of several runs: the whole of each, and the values in which they differ."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dgl_scale.errors import DataError
from dgl_scale.evaluation.report import SideBySide

_CONFIG = "config.yaml"
_ABSENT = "not set"
# Where a run is written and what it is called differs always and means nothing.
_NAMES_ONLY = {"name", "output"}


def read_configs(runs: Mapping[str, Path]) -> dict[str, str]:
    """The config.yaml of each run that has one, as text.

    Raises:
        DataError: one cannot be read.
    """
    texts = {}
    for name, folder in runs.items():
        path = folder / _CONFIG
        if not path.is_file():
            continue
        try:
            texts[name] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return texts


def compare_settings(configs: Mapping[str, str]) -> SideBySide | None:
    """The keys whose values differ between these configs, given as YAML; None where there are not two to compare.

    Raises:
        DataError: one is no YAML mapping.
    """
    if len(configs) < 2:
        return None
    flat = {name: _flatten(_parse(name, text)) for name, text in configs.items()}
    keys = dict.fromkeys(key for values in flat.values() for key in values if key not in _NAMES_ONLY)
    rows = [(key, [values.get(key, _ABSENT) for values in flat.values()]) for key in keys]
    return SideBySide(list(flat), [(key, values) for key, values in rows if len(set(values)) > 1])


def _parse(name: str, text: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{_CONFIG} of run {name} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise DataError(f"{_CONFIG} of run {name} is no mapping of keys to values")
    return values


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = "null" if value is None else str(value)
    return flat
