from pathlib import Path

import pytest

from dgl_scale.config import RunConfig
from dgl_scale.config_file import load_config
from dgl_scale.quickstart.commands import (
    DEFAULT_FOLDER,
    RunChoice,
    build_command,
    evaluate_command,
    find_place,
    run_overrides,
    train_command,
)
from dgl_scale.shards_config import ShardsConfig

ROOT = Path(__file__).resolve().parents[2]


def test_commands_in_a_checkout_are_those_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    place, choice = find_place(DEFAULT_FOLDER), RunChoice("transformer", 0)
    build = build_command(place, "http://127.0.0.1:8265")
    assert build[:3] == ["ray", "job", "submit"]
    assert build[5:] == ["--working-dir", ".", "--", "python", "shard_tools/build.py", "--config", "configs/shards/quickstart.yaml"]
    train = " ".join(train_command(place, choice, 2, "cpu", 29500))
    assert train.startswith("deepspeed --num_accelerators 2 --master_port 29500 dgl_scale/train.py --config configs/quickstart.yaml")
    evaluate = " ".join(evaluate_command(place, choice, 2, "cpu"))
    assert evaluate.startswith("python dgl_scale/evaluate.py --config configs/quickstart.yaml")


@pytest.mark.parametrize("latent_space", ["transformer", "linear"])
@pytest.mark.parametrize("folder", [DEFAULT_FOLDER, Path("elsewhere/deep")])
def test_elsewhere_every_path_is_overridden_and_exists(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, latent_space: str, folder: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    place, choice = find_place(folder), RunChoice(latent_space, 1)
    assert place.checkout is None
    train = train_command(place, choice, 2, "cuda", 1)
    assert train[1] == "--num_gpus"
    assert Path(train[5]).is_file()
    config = load_config(RunConfig, train[7], run_overrides(place, choice))
    assert config.model.latent_space == latent_space
    assert Path(config.model.clip).is_file()
    assert config.data.train == str(folder / "shards" / "train")
    assert (config.name, config.seed) == (f"{latent_space}-seed1", 1)
    build = build_command(place, "http://127.0.0.1:8265")
    assert Path(build[build.index("--") + 2]).is_file()
    shards = load_config(ShardsConfig, build[build.index("--config") + 1], build[build.index("--config") + 2 :])
    assert shards.output == str(tmp_path / folder / "shards")
