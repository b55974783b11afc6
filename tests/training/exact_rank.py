"""One rank of test_exact.py and test_golden.py: the gradient of one global batch through the whole step, for all variants and ZeRO stages.

Rank 0 writes `{variant}/{stage}/{micro}` to the gradients, the loss, the forward passes and what ZeRO holds of frozen weights.
"""

import sys

import torch
from deepspeed.utils import safe_get_full_grad

from dgl_scale import distributed
from dgl_scale.batch import VideoTextBatch
from dgl_scale.config import ModelConfig, OptimConfig, TrainingConfig
from dgl_scale.data.order import rank_places
from dgl_scale.model import DGL, build_model
from dgl_scale.training.determinism import make_deterministic
from dgl_scale.training.engine import TrainingEngine, start_distributed, stop_distributed
from dgl_scale.training.step import Inputs, train_step
from dgl_scale.training.step_timer import StepTimer
from tests.reference.tiny_clip import random_tokens

GLOBAL_BATCH, FRAMES = 24, 2
CPU = torch.device("cpu")


class RecordingEngine(TrainingEngine):
    """Keeps the whole gradient, as it is before clipping and the update."""

    def step(self, lr: float, *, is_boundary: bool) -> float | None:
        if is_boundary:
            self.gradients = {name: whole_gradient(parameter) for name, parameter in self.parameters}
        return super().step(lr, is_boundary=is_boundary)


def whole_gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    gradient = parameter.grad if parameter.grad is not None else safe_get_full_grad(parameter)
    return torch.zeros_like(parameter) if gradient is None else gradient.detach().clone()


def model_of(clip: str, variant: str, dtype: torch.dtype = torch.float32) -> DGL:
    return build_model(ModelConfig(clip=clip, latent_space=variant, num_frames=FRAMES), seed=0, dtype=dtype)


def inputs_of(model: DGL) -> Inputs:
    return Inputs(CPU, model.image_mean, model.image_std, 20.0)


def global_batch() -> VideoTextBatch:
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (GLOBAL_BATCH, FRAMES, 3, 6, 6), dtype=torch.uint8, generator=generator)
    return VideoTextBatch(frames, random_tokens(GLOBAL_BATCH, 2), torch.arange(GLOBAL_BATCH), tuple(map(str, range(GLOBAL_BATCH))))


def run(clip: str, variant: str, stage: int, micro: int) -> dict:
    model = model_of(clip, variant)
    whole, inputs = global_batch(), inputs_of(model)
    places = rank_places(GLOBAL_BATCH, distributed.rank(), distributed.world_size(), micro)
    batches = [VideoTextBatch(whole.frames[p], whole.tokens[p], torch.arange(len(whole.keys[p])), whole.keys[p]) for p in places]
    training = TrainingConfig(global_batch_size=GLOBAL_BATCH, max_steps=1, deepspeed=f"configs/deepspeed/zero{stage}.json")
    engine = RecordingEngine(model, model.trainable_parameters(), training, OptimConfig(), micro, len(places))
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    result = train_step(engine, inputs, batches, 1e-3, StepTimer(CPU))
    return {"loss": result.loss, "gradients": engine.gradients, "forwards": len(forwards), **holdings(engine, model)}


def holdings(engine: TrainingEngine, model: DGL) -> dict[str, int]:
    """How many numbers the optimizer, its partition of this rank, a checkpoint and the frozen weights have here."""
    optimizer = engine._engine.optimizer
    groups = (
        getattr(optimizer, "bit16_groups", None) or getattr(optimizer, "fp16_groups", None) or [g["params"] for g in optimizer.param_groups]
    )
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    state = engine.trained_state()
    return {
        "trained": sum(getattr(parameter, "ds_numel", parameter.numel()) for _, parameter in model.trainable_parameters()),
        "optimized": sum(getattr(parameter, "ds_numel", parameter.numel()) for group in groups for parameter in group),
        "partition": sum(part.numel() for part in getattr(optimizer, "single_partition_of_fp32_groups", [])),
        "checkpointed": sum(values["param"].numel() for values in state.parameters.values()),
        "frozen": sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in frozen),
        "frozen_here": sum(getattr(parameter, "ds_tensor", parameter).numel() for parameter in frozen),
        "num_frozen_tensors": len(frozen),
    }


def losses(clip: str, variant: str, precision: str) -> dict:
    """Six steps of one process, from the same start whenever it is called."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    model, whole = model_of(clip, variant, dtype), global_batch()
    training = TrainingConfig(global_batch_size=GLOBAL_BATCH, max_steps=6, precision=precision, deepspeed="configs/deepspeed/zero1.json")
    engine = TrainingEngine(model, model.trainable_parameters(), training, OptimConfig(), GLOBAL_BATCH, 1)
    scales, norms, found = [], [], []
    for step in range(6):
        result = train_step(engine, inputs_of(model), [whole], 1e-2 / (1 + step), StepTimer(CPU))
        found.append(result.loss)
        norms.append(result.grad_norm)
        scales.append(float(getattr(engine._engine.optimizer, "loss_scale", 1.0)))
    return {"losses": found, "norms": norms, "scales": scales}


def main_losses(clip: str, output: str) -> None:
    make_deterministic()
    start_distributed("cpu")
    runs = [(variant, precision) for variant in ("linear", "transformer") for precision in ("fp32", "bf16")]
    found = {f"{variant} {precision}": losses(clip, variant, precision) for variant, precision in runs}
    found["again"] = losses(clip, *runs[-1])
    torch.save(found, output)
    stop_distributed(gracefully=True)


def main(clip: str, output: str, micro: int) -> None:
    start_distributed("cpu")
    found = {f"{variant}/{stage}": run(clip, variant, stage, micro) for variant in ("linear", "transformer") for stage in range(4)}
    if distributed.is_main():
        torch.save(found, output)
    stop_distributed(gracefully=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        main_losses(*sys.argv[1:])
    else:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
