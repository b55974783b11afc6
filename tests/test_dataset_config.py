from typing import Any

import pytest
import yaml

from dgl_scale.config_file import check_config, dump_config
from dgl_scale.errors import ConfigError
from dgl_scale.shards_config import ShardsConfig

BASE = {"dataset": "d", "videos": "v", "output": "o"}
MSRVTT = {"captions": "a.json", "train": "t.csv", "test": "x.csv"}


def check(values: dict[str, Any]) -> ShardsConfig:
    return check_config(ShardsConfig, {**BASE, **values}, "test")


def test_a_dump_holds_the_datasets_own_section_only_and_reads_back_equal() -> None:
    config = check({"format": "msrvtt", "msrvtt": MSRVTT})
    values = yaml.safe_load(dump_config(config))
    assert values["msrvtt"] == {"split": "9k", **MSRVTT, "captions": ["a.json"]} and "vatex" not in values
    assert check_config(ShardsConfig, values, "dump") == config
    assert config.dataset_section == config.msrvtt and check({"format": "folder"}).dataset_section is None


def test_with_files_changes_every_path_and_nothing_else() -> None:
    section = check({"format": "vatex", "vatex": {"captions": ["a", "b"], "train": "t.txt", "language": "both"}}).vatex
    assert section is not None
    changed = section.with_files(lambda key, path: f"{key}/{path}")
    assert changed == section.model_copy(update={"captions": ("captions/a", "captions/b"), "train": "train/t.txt"})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"format": "msrvt"}, "format: input should be"),
        ({"format": "msrvtt"}, "format: msrvtt needs a section msrvtt with its annotation files (docs/datasets.md)"),
        ({"format": "folder", "msrvtt": MSRVTT}, "section msrvtt is for format: msrvtt, and the format is folder"),
        ({"format": "msrvtt", "msrvtt": {**MSRVTT, "caption": "x"}}, "unknown key msrvtt.caption; did you mean captions?"),
        ({"format": "msrvtt", "msrvtt": {**MSRVTT, "split": "8k"}}, "msrvtt.split: input should be '9k', '7k' or 'full', got '8k'"),
        ({"format": "msrvtt", "msrvtt": {**MSRVTT, "split": "full"}}, "split full takes no train"),
        (
            {"format": "msrvtt", "msrvtt": {"captions": "a.json", "train": "t"}},
            "split 9k needs train, the list of its training ids, and test",
        ),
        ({"format": "msvd", "msvd": {"captions": "c.pkl"}}, "name the annotation file of at least one split (train, validation, test)"),
        ({"format": "vatex", "vatex": {"train": "t.txt"}}, "train is a list of ids; captions must name the JSON files"),
        ({"format": "activitynet", "activitynet": {}}, "at least one split (train, val_1, val_2)"),
        ({"format": "didemo", "didemo": {"train": "t", "caption_order": "id"}}, "didemo.caption_order: input should be 'time' or 'file'"),
        (
            {"format": "folder", "validation_videos": 5, "validation_fraction": 0.1},
            "give validation_videos or validation_fraction, not both",
        ),
        ({"format": "folder", "validation_fraction": 1.0}, "validation_fraction: input should be less than 1"),
        ({"format": "folder", "require_coverage": 99}, "require_coverage: input should be less than or equal to 1"),
        ({"format": "folder", "encoding": "utf-9"}, "encoding: no such character encoding"),
        ({"format": "folder", "encoding": "base64"}, "encoding: no such character encoding"),
    ],
)
def test_wrong_sections_say_what_to_do(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match="^[^\\n]*$") as error:
        check(values)
    assert expected in str(error.value)
