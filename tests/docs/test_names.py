"""What the text of the documentation names is there: files of the repository, and keys of configs."""

import re
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel

from dgl_scale.config import RunConfig
from dgl_scale.shards_config import ShardsConfig
from tests.docs.documented import PAGES, ROOT, inline_code

_FOLDERS = ("dgl_scale", "configs", "shard_tools", "tests", "cluster", "docs")
SECTIONS = {
    name for schema in (RunConfig, ShardsConfig) for name, field in schema.model_fields.items() if "Config" in str(field.annotation)
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_keys_are_there(page: Path) -> None:
    for code in inline_code(page):
        if re.fullmatch(rf"({'|'.join(_FOLDERS)})/[\w./-]+", code):
            assert (ROOT / code).exists(), f"{page.name}: {code}"
        key = re.fullmatch(r"([a-z_]+(?:\.[a-z_]+)+)(?:[=:].*)?", code.removesuffix(".yaml"))
        if key and key[1].split(".")[0] in SECTIONS:
            assert any(_has(schema, key[1].split(".")) for schema in (RunConfig, ShardsConfig)), f"{page.name}: {code}"


def test_a_key_that_is_gone_is_noticed() -> None:
    assert {"model", "training", "frames", "storage", "msrvtt"} <= SECTIONS
    assert _has(RunConfig, ["data", "cache", "max_gib"])
    assert not _has(RunConfig, ["data", "cache", "gone"])
    assert not _has(RunConfig, ["training", "gone"])


def _has(schema: type[BaseModel], names: list[str]) -> bool:
    field = schema.model_fields.get(names[0])
    if field is None or len(names) == 1:
        return field is not None
    return any(_has(inner, names[1:]) for inner in _schemas(field.annotation))


def _schemas(annotation: object) -> list[type[BaseModel]]:
    """The config sections in an annotation such as `CacheConfig | None` or `tuple[StreamSource, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [schema for part in typing.get_args(annotation) for schema in _schemas(part)]
