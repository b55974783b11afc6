"""YAML files and `key.path=value` overrides to a typed config, with errors that say what to do."""

import difflib
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dgl_scale.config_section import Section
from dgl_scale.errors import ConfigError

S = TypeVar("S", bound=Section)

_PACKAGE = Path(__file__).resolve().parent


def load_config(schema: type[S], path: str | Path, overrides: Sequence[str] = ()) -> S:
    """Read a YAML file, apply overrides such as `optim.lr=1e-3`, and check the result.

    Raises:
        ConfigError: the file is missing or no mapping, an override is malformed, a key is unknown, a
            value is of the wrong type or out of range. One line: where, what was given, what is allowed.
    """
    source = find_config(str(path))
    try:
        values = yaml.safe_load(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read config {source}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config {source} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"config {source} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config {source} must be a mapping of keys to values, got {type(values).__name__}")
    for override in overrides:
        _apply_override(values, override)
    return check_config(schema, values, str(source))


def check_config(schema: type[S], values: dict[str, Any], source: str) -> S:
    """`values` as a config of type `schema`; `source` names them in errors.

    Raises:
        ConfigError: as `load_config`.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        lines = [_explain(schema, detail) for detail in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(lines)) from error


def dump_config(config: Section) -> str:
    """The config as YAML text that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def find_config(name: str) -> Path:
    """The file that `name` means: as given, else the one shipped under `configs/`.

    Raises:
        ConfigError: neither exists; names the nearest shipped config.
    """
    given = Path(name).expanduser()
    if given.exists():
        return given
    shipped = configs_folder()
    relative = name.removeprefix("configs/")
    if (shipped / relative).is_file():
        return shipped / relative
    known = [f"configs/{file.relative_to(shipped)}" for file in sorted(shipped.rglob("*")) if file.suffix in {".yaml", ".json"}]
    raise ConfigError(f"no config file {name}{_nearest(name, known)}")


def configs_folder() -> Path:
    """Folder of the shipped configs: in the checkout, or inside the installed package."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def _apply_override(values: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    keys = path.split(".")
    if not separator or not all(keys):
        raise ConfigError(f"override {override!r} must have the form key.path=value, such as optim.lr=1e-3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"value of override {override!r} is not valid YAML") from error
    node = values
    for key in keys[:-1]:
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {key} is a value, not a section")
        node = child
    node[keys[-1]] = value


def _explain(schema: type[Section], detail: ErrorDetails) -> str:
    path = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _keys_at(schema, detail["loc"][:-1])
        return f"unknown key {path}{_nearest(str(detail['loc'][-1]), known)}"
    if detail["type"] == "missing":
        return f"{path} is missing and has no default"
    message = detail["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not path:
        return message
    if isinstance(detail["input"], dict | BaseModel):
        return f"{path}: {message}"
    return f"{path}: {message}, got {detail['input']!r}"


def _keys_at(schema: type[Section], path: tuple[int | str, ...]) -> list[str]:
    for key in path:
        field = schema.model_fields.get(str(key))
        if field is None:
            return []
        annotation = field.annotation
        candidates = get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        sections = [c for c in candidates if isinstance(c, type) and issubclass(c, Section)]
        if not sections:
            return []
        schema = sections[0]
    return list(schema.model_fields)


def _nearest(name: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if matches:
        return f"; did you mean {matches[0]}?"
    return f"; known: {', '.join(known)}" if known else ""
