"""What a run decides before it starts."""

from pathlib import Path

import pytest
import torch
import yaml

from dgl_scale.config import OptimConfig, TrainingConfig
from dgl_scale.errors import ConfigError
from dgl_scale.training.deepspeed_config import deepspeed_config
from dgl_scale.training.run import choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("recorded", ["fp32", "bf16"])
def test_auto_precision_is_measured_once_and_kept_by_a_resumed_run(tmp_path: Path, recorded: str) -> None:
    assert choose_precision("fp16", tmp_path, CPU) == "fp16"
    assert choose_precision("auto", tmp_path, CPU) in {"fp32", "bf16"}
    config = {"name": "x", "model": {"clip": "ViT-B-32"}, "training": {"global_batch_size": 2, "max_steps": 1, "precision": recorded}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert choose_precision("auto", tmp_path, CPU) == recorded


def test_compiled_layers_and_zero_3_are_refused_together() -> None:
    training = TrainingConfig(global_batch_size=2, max_steps=1, compile=True, deepspeed="configs/deepspeed/zero3.json")
    with pytest.raises(ConfigError, match=r"training.compile needs a ZeRO stage of 0 to 2, and .*zero3.json is of stage 3"):
        deepspeed_config(training, OptimConfig(), 2, 1, 100)
    assert deepspeed_config(training.model_copy(update={"deepspeed": "configs/deepspeed/zero2.json"}), OptimConfig(), 2, 1, 100)
