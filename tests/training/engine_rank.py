"""One rank of test_engine.py: a small model under DeepSpeed at some ZeRO stages, stopped and continued from its gathered state."""

import json
import sys
from pathlib import Path

import torch

from dgl_scale import distributed
from dgl_scale.config import OptimConfig, TrainingConfig
from dgl_scale.training.engine import TrainingEngine, start_distributed, stop_distributed
from dgl_scale.training.loss import global_contrastive_loss

OPTIM = OptimConfig(lr=1e-2, max_grad_norm=0.5)
GLOBAL_BATCH = 12


class TwoTowers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = torch.nn.Linear(6, 6).requires_grad_(False)
        self.video, self.text = torch.nn.Linear(6, 5), torch.nn.Linear(6, 5)

    def forward(self, frames: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        normalise = torch.nn.functional.normalize
        return normalise(self.video(torch.tanh(self.frozen(frames))), dim=-1), normalise(self.text(tokens), dim=-1)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    both = torch.randn(2, GLOBAL_BATCH, 6, generator=generator)
    share = GLOBAL_BATCH // distributed.world_size()
    part = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
    return both[0, part], both[1, part]


def build(stage: int) -> TrainingEngine:
    training = TrainingConfig(global_batch_size=GLOBAL_BATCH, max_steps=6, deepspeed=f"configs/deepspeed/zero{stage}.json")
    model = TwoTowers()
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return TrainingEngine(model, parameters, training, OPTIM, GLOBAL_BATCH // distributed.world_size(), 1)


def run(engine: TrainingEngine, steps: range) -> tuple[float | None, dict[str, float]]:
    norm, part_norms = None, {}
    for step in steps:
        video, text = engine.forward(*batch(step))
        engine.backward(global_contrastive_loss(text, video, 10.0).loss)
        part_norms = engine.gradient_norms(lambda name: name.partition(".")[0])
        norm = engine.step(OPTIM.lr / (1 + step), is_boundary=True)
    return norm, part_norms


def sizes_in_zero(engine: TrainingEngine, stage: int) -> dict[str, int]:
    """Elements that DeepSpeed reduces, that its optimizer holds on this rank and that its buffer takes; frozen weights that lie here."""
    deepspeed, optimizer = engine._engine, engine._engine.optimizer
    frozen = sum(getattr(p, "ds_tensor", p).numel() for p in engine.module.frozen.parameters())
    if stage == 0:
        reduced, _ = deepspeed._get_gradients_for_reduction()
        held = [state[key] for state in optimizer.state.values() for key in ("exp_avg",)]
    elif stage == 3:
        reduced = [p for group in optimizer.fp16_groups for p in group]
        held = list(optimizer.fp32_partitioned_groups_flat)
    else:
        reduced = [p for group in optimizer.bit16_groups for p in group]
        held = list(optimizer.single_partition_of_fp32_groups)
    numels = {"reduced": sum(getattr(t, "ds_numel", t.numel()) for t in reduced), "held": sum(t.numel() for t in held)}
    return numels | {"frozen": frozen, "bucket": getattr(optimizer, "reduce_bucket_size", 0)}


def answers_of(stage: int) -> dict[str, object]:
    whole = build(stage)
    norm, part_norms = run(whole, range(6))
    sizes = sizes_in_zero(whole, stage)
    first = build(stage)
    run(first, range(3))
    second = build(stage)
    second.load_trained_state(first.trained_state(), *batch(99))
    run(second, range(3, 6))
    states = [whole.trained_state(), second.trained_state()]
    values = [{f"{n}.{k}": t.flatten().tolist() for n, p in state.parameters.items() for k, t in p.items()} for state in states]
    answers = {"whole": values[0], "continued": values[1], "step": states[1].step, "norm": norm, "part_norms": part_norms}
    return answers | {"sizes": sizes}


def main(stages: list[int], output: str) -> None:
    start_distributed("cpu")
    answers = {stage: answers_of(stage) for stage in stages}
    if distributed.is_main():
        Path(output).write_text(json.dumps(answers))
    stop_distributed(gracefully=True)


if __name__ == "__main__":
    main([int(stage) for stage in sys.argv[2:]], sys.argv[1])
