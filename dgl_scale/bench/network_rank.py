"""One rank of `dgl-scale bench training --network`: real steps, and what this process's sockets sent in each of their phases.

python -m dgl_scale.bench.network_rank PLAN.json OUTPUT.json       with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set
"""

import contextlib
import json
import os
import socket
import stat
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dgl_scale import distributed
from dgl_scale.batch import VideoTextBatch
from dgl_scale.bench.train_step import random_batch
from dgl_scale.config import ModelConfig, OptimConfig, TrainingConfig
from dgl_scale.files import write_json
from dgl_scale.model import DGL, build_model
from dgl_scale.model.precision import DTYPES, Precision
from dgl_scale.training.engine import TrainingEngine, start_distributed, stop_distributed
from dgl_scale.training.step import Inputs, train_step
from dgl_scale.training.step_timer import StepTimer

_CPU = torch.device("cpu")
# Stage 3 learns the order of its modules in the first step and gathers ahead from the second on.
_WARM_UP = 2
# Of `struct tcp_info` in linux/tcp.h: the offsets of tcpi_notsent_bytes (u32), tcpi_bytes_sent and tcpi_bytes_retrans (u64).
_NOT_SENT, _SENT, _RETRANSMITTED, _INFO_BYTES = 144, 200, 208, 216


@dataclass(frozen=True)
class Plan:
    """What the ranks measure: each ZeRO stage with each backbone.

    Attributes:
        clips: names or config files; random weights.
        pairs: a rank and micro-batch.
        accumulation: micro-batches a step.
        steps: measured ones.
    """

    clips: list[str]
    stages: list[int]
    latent_space: str
    num_frames: int
    precision: Precision
    pairs: int
    accumulation: int
    steps: int


@dataclass(frozen=True)
class Measurement:
    """A backbone under a ZeRO stage; bytes a step that one rank sends, the mean over ranks and steps.

    Attributes:
        num_reached: trained numbers that get a gradient; postfix prompts of the linear latent space get none.
        phases: by phase of the step; `rest` is what lies between them.
    """

    clip: str
    stage: int
    embed_dim: int
    num_trained: int
    num_reached: int
    num_frozen: int
    phases: dict[str, float]


class SentBytes(StepTimer):
    """Counts bytes instead of seconds."""

    def __init__(self) -> None:
        super().__init__(_CPU)
        self.bytes: defaultdict[str, int] = defaultdict(int)

    @contextlib.contextmanager
    def phase(self, name: str, *, on_host: bool = False) -> Iterator[None]:
        """Add what is sent in the block to `name`."""
        before = sent_bytes()
        yield
        self.bytes[name] += sent_bytes() - before


def sent_bytes() -> int:
    """What this process has written to its open TCP connections since they were opened, headers and repeats left out. Linux only."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.stat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as connection:
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
                if len(info) == _INFO_BYTES:
                    sent, repeated = struct.unpack_from("=QQ", info, _SENT)
                    total += sent - repeated + struct.unpack_from("=I", info, _NOT_SENT)[0]
    return total


def main(plan_file: str, output: str) -> None:
    """Measure the plan; rank 0 writes the measurements."""
    plan = Plan(**json.loads(Path(plan_file).read_text(encoding="utf-8")))
    torch.set_num_threads(1)
    start_distributed("cpu")
    found = [measure(plan, clip, stage) for clip in plan.clips for stage in plan.stages]
    if distributed.is_main():
        write_json(Path(output), [asdict(one) for one in found])
    stop_distributed(gracefully=True)


def measure(plan: Plan, clip: str, stage: int) -> Measurement:
    """Steps of one backbone under one ZeRO stage. Collective."""
    config = ModelConfig(clip=clip, latent_space=plan.latent_space, num_frames=plan.num_frames)  # type: ignore[arg-type]
    model = build_model(config, dtype=DTYPES[plan.precision])
    trained = model.trainable_parameters()
    num_trained = sum(parameter.numel() for _, parameter in trained)
    num_frozen = sum(parameter.numel() for parameter in model.parameters()) - num_trained
    num_reached = sum(parameter.numel() for name, parameter in trained if "postfix" not in name.split("."))
    training = TrainingConfig(
        global_batch_size=plan.pairs * plan.accumulation * distributed.world_size(),
        max_steps=1,
        precision=plan.precision,
        deepspeed=f"configs/deepspeed/zero{stage}.json",
    )
    engine = TrainingEngine(model, trained, training, OptimConfig(), plan.pairs, plan.accumulation)
    phases = _steps(engine, _inputs(model), [_batch(plan, model)] * plan.accumulation, plan.steps)
    return Measurement(clip, stage, model.embed_dim, num_trained, num_reached, num_frozen, phases)


def _steps(engine: TrainingEngine, inputs: Inputs, batch: list[VideoTextBatch], steps: int) -> dict[str, float]:
    for _ in range(_WARM_UP):
        train_step(engine, inputs, batch, 1e-3, StepTimer(_CPU))
    counter = SentBytes()
    before = sent_bytes()
    for _ in range(steps):
        train_step(engine, inputs, batch, 1e-3, counter)
    rest = sent_bytes() - before - sum(counter.bytes.values())
    own: dict[str, Any] = {name: (sent / steps, "mean") for name, sent in {**counter.bytes, "rest": rest}.items()}
    return distributed.reduce_numbers(own)


def _inputs(model: DGL) -> Inputs:
    return Inputs(_CPU, model.image_mean, model.image_std, float(model.logit_scale.exp()))


def _batch(plan: Plan, model: DGL) -> VideoTextBatch:
    _, tokens = random_batch(model, plan.pairs, 1, 16, torch.float32, _CPU)
    frames = torch.randint(0, 256, (plan.pairs, plan.num_frames, 3, model.image_size, model.image_size), dtype=torch.uint8)
    return VideoTextBatch(frames, tokens, torch.arange(plan.pairs), tuple(map(str, range(plan.pairs))))


if __name__ == "__main__":
    main(*sys.argv[1:])
