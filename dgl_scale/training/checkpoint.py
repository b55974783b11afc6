"""Checkpoints of a run: complete or absent, independent of world size and ZeRO stage.

step-00001000/prompts.safetensors    fp32 prompts, usable alone
step-00001000/optimizer.safetensors  fp32 moments of AdamW
step-00001000/state.json             step, batches' identity, the config keys that decide the mathematics
step-00001000/manifest.json          size and SHA-256 of the above
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from dgl_scale.config import RunConfig
from dgl_scale.errors import CheckpointError
from dgl_scale.files import atomic_folder, json_sha256, read_json, write_json
from dgl_scale.run_folder import PROMPTS, check_complete, remove_checkpoint, step_folder, write_manifest, write_pointer
from dgl_scale.training.engine import TrainedState

OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"

WritePrompts = Callable[[Path, dict[str, Tensor], dict[str, Any]], None]
"""`(path, prompts, facts)`: writes a prompts file from name to fp32 tensor; the facts travel with it."""


def save_checkpoint(
    run_folder: Path, state: TrainedState, identity: dict[str, Any], write_prompts: WritePrompts, metrics: dict[str, float]
) -> Path:
    """Write a checkpoint and point `latest` at it. Called on rank 0 only.

    Args:
        state: gathered on all ranks.
        identity: of `run_identity`; compared at resume.
        write_prompts: writes the prompts file.
        metrics: of the validation split; empty where it was not evaluated.

    Raises:
        DglError: the disk is full or read-only; nothing half-written is left.
    """
    checkpoint = step_folder(run_folder, state.step)
    if checkpoint.exists():
        # Reached again after a resume from an older checkpoint because this one was damaged.
        remove_checkpoint(checkpoint)
    with atomic_folder(checkpoint) as folder:
        facts = {"step": state.step, **training_facts(identity), **({"validation": metrics} if metrics else {})}
        write_prompts(folder / PROMPTS, {name: values["param"] for name, values in state.parameters.items()}, facts)
        moments = {f"{name}.{key}": tensor for name, values in state.parameters.items() for key, tensor in values.items()}
        # Not save_file, whose error for a full disk is no OSError.
        (folder / OPTIMIZER).write_bytes(save(moments))
        write_json(folder / STATE, {"step": state.step, **identity})
        write_manifest(folder)
    write_pointer(run_folder, "latest", checkpoint)
    return checkpoint


def load_checkpoint(checkpoint: Path, identity: dict[str, Any]) -> TrainedState:
    """Read a checkpoint back.

    Raises:
        CheckpointError: it is damaged, or belongs to a run with another config; names the keys.
    """
    check_complete(checkpoint)
    stored = read_json(checkpoint / STATE)
    different = sorted(key for key in identity if stored.get(key) != identity[key])
    if different:
        details = ", ".join(f"{key} was {stored.get(key)!r} and is {identity[key]!r}" for key in different)
        raise CheckpointError(f"{checkpoint} was written with another config: {details}; restore it or choose another name for the run")
    try:
        moments = load_file(checkpoint / OPTIMIZER)
    except SafetensorError as error:
        raise CheckpointError(f"{checkpoint / OPTIMIZER} cannot be read: {error}") from error
    parameters: dict[str, dict[str, Tensor]] = {}
    for name, tensor in moments.items():
        parameter, _, key = name.rpartition(".")
        parameters.setdefault(parameter, {})[key] = tensor
    return TrainedState(stored["step"], parameters)


def run_identity(config: RunConfig, data_digest: str, backbone_digest: str, total_steps: int) -> dict[str, Any]:
    """The values on which the sequence of updates depends, by dotted config key.

    Micro-batch, ranks, ZeRO stage and workers are absent: they change speed, never the mathematics.
    """
    identity: dict[str, Any] = {"shards": data_digest, "backbone": backbone_digest, "seed": config.seed, "total_steps": total_steps}
    identity["training.global_batch_size"] = config.training.global_batch_size
    identity["training.precision"] = config.training.precision
    for section in ("model", "optim"):
        identity |= {f"{section}.{key}": value for key, value in getattr(config, section).model_dump(mode="json").items()}
    for key in ("max_words", "train_frames", "last_batch"):
        identity[f"data.{key}"] = getattr(config.data, key)
    # Names of places, not mathematics: the digests above stand for what is in them.
    for key in ("model.clip", "model.pretrained"):
        del identity[key]
    return identity


def training_facts(identity: dict[str, Any]) -> dict[str, Any]:
    """What a prompts file says of its training: the shards' digest, the digest of all of `run_identity`, and its keys.

    Functions of the identity alone, so that equal runs write equal files. Model and backbone are said by the file itself.
    """
    keys = {key: value for key, value in identity.items() if key not in ("shards", "backbone") and not key.startswith("model.")}
    return {"shards": identity["shards"], "config_sha256": json_sha256(identity), "training": keys}
