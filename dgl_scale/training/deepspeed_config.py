"""DeepSpeed's settings: the run's file under `configs/deepspeed`, and what the run's own config adds."""

import json
from dataclasses import dataclass
from typing import Any

from dgl_scale.config import OptimConfig, TrainingConfig
from dgl_scale.config_file import find_config
from dgl_scale.errors import ConfigError

# Keys that the run's own config decides; a DeepSpeed file that sets them would contradict it silently.
_RESERVED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "bf16",
    "fp16",
)
_SHIPPED_STAGE_3 = "configs/deepspeed/zero3.json"
# DeepSpeed's own values of stage 3.
_DEFAULT_KEPT, _DEFAULT_AHEAD = 1_000_000_000, 50_000_000


@dataclass(frozen=True)
class Stage3Limits:
    """How many numbers of gathered weights a rank has at once under stage 3.

    Attributes:
        kept: from one pass to the next one that needs them; what is beyond is gathered again in each pass.
        ahead: gathered before they are needed, beside those.
    """

    kept: int
    ahead: int


def zero_stage(training: TrainingConfig) -> int:
    """The ZeRO stage of the run's DeepSpeed file.

    Raises:
        ConfigError: the file cannot be read, or contradicts the run's config.
    """
    return _stage(_file(training.deepspeed))


def stage_3_limits(deepspeed: str = _SHIPPED_STAGE_3) -> Stage3Limits:
    """Of a DeepSpeed file, or, where that is of another stage, of the shipped one for stage 3.

    Raises:
        ConfigError: as `zero_stage`.
    """
    config = _file(deepspeed)
    if _stage(config) != 3:
        config = _file(_SHIPPED_STAGE_3)
    zero = config["zero_optimization"]
    kept = max(zero.get(f"stage3_{name}", _DEFAULT_KEPT) for name in ("max_live_parameters", "max_reuse_distance"))
    return Stage3Limits(int(kept), int(zero.get("stage3_prefetch_bucket_size", _DEFAULT_AHEAD)))


def deepspeed_config(
    training: TrainingConfig, optim: OptimConfig, micro_batch_size: int, accumulation_steps: int, num_trained: int
) -> dict[str, Any]:
    """What `deepspeed.initialize` is given.

    Raises:
        ConfigError: as `zero_stage`, or the stage cannot be compiled.
    """
    config = _file(training.deepspeed)
    stage = _stage(config)
    if stage:
        # In every backward pass DeepSpeed allocates so many numbers in full, by default 500 million, 2 GB: more than prompts could fill.
        config["zero_optimization"].setdefault("reduce_bucket_size", num_trained)
    if training.compile and stage == 3:
        path = find_config(training.deepspeed)
        raise ConfigError(f"training.compile needs a ZeRO stage of 0 to 2, and {path} is of stage 3, which fetches weights by hooks")
    config |= {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": optim.max_grad_norm or 0.0,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 62,
    }
    if training.precision != "fp32":
        config[training.precision] = {"enabled": True}
    return config


def _stage(config: dict[str, Any]) -> int:
    return int(config.get("zero_optimization", {}).get("stage", 0))


def _file(name: str) -> dict[str, Any]:
    path = find_config(name)
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"DeepSpeed config {path} is not readable JSON: {error}") from error
    if reserved := [key for key in _RESERVED if key in config]:
        raise ConfigError(f"DeepSpeed config {path} sets {reserved[0]}, which the run's own config decides; remove it there")
    return config
