from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dgl_scale.config import ModelConfig, RunConfig
from dgl_scale.config_file import check_config, configs_folder, dump_config, load_config
from dgl_scale.errors import ConfigError
from dgl_scale.shards_config import ShardsConfig

MINIMAL = {"name": "tiny", "model": {"clip": "ViT-B-32"}, "training": {"global_batch_size": 8, "max_steps": 3}}


def write(tmp_path: Path, values: object) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_overrides_are_typed_and_nested(tmp_path: Path) -> None:
    config = load_config(RunConfig, write(tmp_path, MINIMAL), ["optim.lr=1e-3", "data.train=shards/train", "model.prompt_depth=null"])
    assert config.optim.lr == 1e-3
    assert config.data.train == "shards/train"
    assert config.model.prompt_depth is None


@given(
    latent_space=st.sampled_from(["linear", "transformer", None]),
    num_frames=st.integers(1, 64),
    depth=st.none() | st.integers(1, 24),
    lr=st.floats(1e-9, 10),
    name=st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True),
)
def test_dump_reads_back_equal(latent_space: str | None, num_frames: int, depth: int | None, lr: float, name: str) -> None:
    model = {"clip": "ViT-L-14", "latent_space": latent_space, "num_frames": num_frames, "prompt_depth": depth}
    config = check_config(RunConfig, {**MINIMAL, "name": name, "model": model, "optim": {"lr": lr}}, "test")
    assert check_config(RunConfig, yaml.safe_load(dump_config(config)), "dump") == config


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.latent_spac=linear"], "unknown key model.latent_spac; did you mean latent_space?"),
        (["optim.rl=1"], "unknown key optim.rl; did you mean lr?"),
        (["trainning.epochs=1"], "unknown key trainning; did you mean training?"),
        (["model.num_frames=twelve"], "model.num_frames: input should be a valid integer"),
        (["optim.lr=-1"], "optim.lr: input should be greater than 0, got -1"),
        (["optim.lr=.nan"], "optim.lr: input should be a finite number"),
        (["training.epochs=3"], "give exactly one of epochs and max_steps"),
        (["training.micro_batch_size=16"], "micro_batch_size 16 is larger than global_batch_size 8"),
        (["optim.lr"], "must have the form key.path=value"),
        (["name.x=1"], "name is a value, not a section"),
        (["optim.lr=[1"], "is not valid YAML"),
        (["name=a/b"], "name: string should match pattern"),
    ],
)
def test_wrong_overrides_say_what_to_do(tmp_path: Path, overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match="^[^\n]*$") as error:
        load_config(RunConfig, write(tmp_path, MINIMAL), overrides)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[1, 2]", "must be a mapping"),
        (b"a: [", "not valid YAML"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"!!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=expected):
        load_config(RunConfig, path)


def test_missing_file_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no config file configs/quikstart.yaml; did you mean configs/quickstart.yaml\?"):
        load_config(RunConfig, "configs/quikstart.yaml")


def test_every_shipped_config_loads() -> None:
    runs = sorted(configs_folder().glob("*.yaml"))
    shards = sorted((configs_folder() / "shards").glob("*.yaml"))
    assert runs
    assert shards
    for path in runs:
        load_config(RunConfig, path)
    for path in shards:
        load_config(ShardsConfig, path)


def test_config_is_immutable() -> None:
    config = ModelConfig(clip="ViT-B-32")
    with pytest.raises(ValueError, match="frozen"):
        config.clip = "other"  # type: ignore[misc]
