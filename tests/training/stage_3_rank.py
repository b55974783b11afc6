"""One rank of test_stage_3.py: how many frozen weights lie on it between the forward and the backward pass."""

import json
import sys
from pathlib import Path

import torch

from dgl_scale import distributed
from dgl_scale.config import OptimConfig, TrainingConfig
from dgl_scale.training.engine import TrainingEngine, start_distributed, stop_distributed

WIDTH, DEPTH, STEPS = 400, 8, 3


class Deep(torch.nn.Module):
    """Frozen layers after a trained one, so that the backward pass needs them too; each is too large to stay gathered for good."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(4, WIDTH)
        self.frozen = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))).requires_grad_(False)

    def forward(self, frames: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.frozen(torch.tanh(self.first(frames))), tokens


def main(deepspeed: str, output: str) -> None:
    start_distributed("cpu")
    training = TrainingConfig(global_batch_size=4, max_steps=STEPS, deepspeed=deepspeed)
    model = Deep()
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    engine = TrainingEngine(model, trained, training, OptimConfig(), 2, 1)
    held = []
    # In the first step DeepSpeed learns the order of the modules, and keeps nothing.
    for step in range(STEPS):
        frames = torch.randn(2, 4, generator=torch.Generator().manual_seed(10 * step + distributed.rank()))
        video, text = engine.forward(frames, frames)
        held.append(sum(parameter.data.numel() for parameter in engine.module.frozen.parameters()))
        engine.backward(video.square().mean() + text.mean())
        engine.step(1e-2, is_boundary=True)
    state = {name: values["param"].flatten().tolist() for name, values in engine.trained_state().parameters.items()}
    if distributed.is_main():
        Path(output).write_text(json.dumps({"held": held, "state": state}))
    stop_distributed(gracefully=True)


if __name__ == "__main__":
    main(sys.argv[-2], sys.argv[-1])
