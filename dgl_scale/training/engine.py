"""DeepSpeed behind one class: start-up, precision, steps, gathered state; `deepspeed_config` has its settings."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _set_pg_timeout

from dgl_scale import distributed
from dgl_scale.config import OptimConfig, TrainingConfig
from dgl_scale.errors import CheckpointError, ConfigError, DglError
from dgl_scale.training.deepspeed_config import deepspeed_config
from dgl_scale.training.launch import describe_launch
from dgl_scale.training.optimizer import build_optimizer
from dgl_scale.training.rendezvous import Facts, meet

# Gloo tries so often to connect ranks, each time until the timeout.
_GLOO_ATTEMPTS = 5
# The watchdog, which says where each rank stood, comes first.
_AFTER_WATCHDOG_S = 20.0
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class TrainedState:
    """All that an optimizer step changes, whole on every rank, independent of ZeRO stage and world size.

    Attributes:
        step: optimizer steps taken.
        parameters: name to the fp32 master, `exp_avg` and `exp_avg_sq` of a trained parameter, on the CPU.
    """

    step: int
    parameters: dict[str, dict[str, Tensor]]


def start_distributed(device: str, facts: Facts | None = None, timeout_s: float = 300.0, *, hang_timeout_s: float = 1800.0) -> torch.device:
    """Join the process group that a launcher describes, or one of a single process; returns the device.

    Understands `deepspeed`, `torchrun` and `srun` (through Slurm's variables).

    Args:
        device: `cuda`, `cpu` or `auto` (cuda where there is one).
        facts: what all ranks must have been started with, beside the same versions.
        timeout_s: how long to wait for ranks that have not come, and then for connections between them.
        hang_timeout_s: the watchdog's; a collective fails a little later by itself.

    Raises:
        ConfigError: `cuda` was asked for and there is none, or too few; or the ranks were started with different facts.
        DglError: the ranks cannot meet: a port is in use, some did not come, or they have no way to each other.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, but torch sees no GPU; use --device cpu")
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    describe_launch(os.environ)
    if not use_cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
    deepspeed = _import_deepspeed(use_cuda)
    here = _own_gpu() if use_cuda else torch.device("cpu")
    rank, world_size, backend = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), "nccl" if use_cuda else "gloo"
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store = meet(facts or {}, timeout_s)
        torch.distributed.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s if use_cuda else timeout_s / _GLOO_ATTEMPTS),
            device_id=here if use_cuda and world_size > 1 else None,
        )
    except torch.distributed.DistError as error:
        reason = str(error).splitlines()[0]
        raise DglError(f"the ranks cannot meet at {address}: {reason}; if the port is in use choose another --master_port") from error
    except RuntimeError as error:
        if "connectFullMesh" not in str(error):
            raise
        raise DglError(
            f"all ranks came to {address}, but rank {rank} has no connection to the others; open all ports between the hosts, "
            "or name the network interface that connects them in GLOO_SOCKET_IFNAME"
        ) from error
    # All ranks are there and connected; from now on one may wait for another that reads or writes.
    collective_timeout = timedelta(seconds=hang_timeout_s + _AFTER_WATCHDOG_S)
    store.set_timeout(collective_timeout)
    _set_pg_timeout(collective_timeout)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return here


def stop_distributed(*, gracefully: bool) -> None:
    """Leave the process group; without it about half of CPU runs abort at exit.

    Args:
        gracefully: all ranks are in step and wait for each other; false after an error on one of them.
    """
    if not torch.distributed.is_initialized():
        return
    if gracefully or distributed.world_size() == 1:
        from deepspeed import comm

        try:
            distributed.barrier()
        except RuntimeError as error:
            if distributed.lost_peer(error) is None:
                raise
            # The work is done and saved, and nobody is left to wait for.
            return
        # Through DeepSpeed, which would else keep groups that are no more, should this process train again.
        comm.destroy_process_group()


class TrainingEngine:
    """A model under DeepSpeed: forward, backward, step, and its trained state in and out.

    Attributes:
        parameters: (name, parameter) of all trained ones.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: list[tuple[str, nn.Parameter]],
        training: TrainingConfig,
        optim: OptimConfig,
        micro_batch_size: int,
        accumulation_steps: int,
    ) -> None:
        """
        Args:
            model: called as `model(frames, tokens)`; only `parameters` require gradients.
            parameters: (name, parameter) of all trained ones.
            micro_batch_size: pairs a rank and backward pass.
            accumulation_steps: backward passes a step.
        """
        import deepspeed

        if training.precision == "fp16" and not deepspeed.get_accelerator().is_fp16_supported():
            raise ConfigError("training.precision fp16 is for GPUs; take fp32 or bf16 here")
        self.parameters = parameters
        self._optim = optim
        num_trained = sum(parameter.numel() for _, parameter in parameters)
        config = deepspeed_config(training, optim, micro_batch_size, accumulation_steps, num_trained)
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=build_optimizer(parameters, optim), config=config)
        self._accumulation_steps = accumulation_steps
        self._steps = 0

    @property
    def module(self) -> nn.Module:
        """The model itself, for evaluation."""
        return self._engine.module  # type: ignore[no-any-return]

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type of weights and activations."""
        return _module_dtype(self._engine)

    @property
    def steps(self) -> int:
        """Optimizer steps taken, those before a resume included."""
        return self._steps

    def forward(self, frames: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`(video_features [B, E], text_features [B, E])` of a micro-batch, through the engine's hooks."""
        return self._engine(frames, tokens)  # type: ignore[no-any-return]

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` (a sum over micro-batches, not their mean) to the step's."""
        # DeepSpeed divides by the accumulation steps; the losses here are parts of one sum.
        self._engine.backward(loss * self._accumulation_steps)

    def step(self, lr: float, *, is_boundary: bool) -> float | None:
        """After a backward pass; at the last micro-batch clips, updates and returns the gradient's norm.

        None before the last micro-batch, and where fp16 overflowed and the update was left out.
        """
        if not is_boundary:
            self._engine.step()
            return None
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        # Stage 0 in fp32 has no optimizer wrapper that would measure the norm; its gradients are whole here.
        gradients = [p.grad for _, p in self.parameters if p.grad is not None and not _is_partitioned(p)]
        plain_norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else None
        self._engine.step()
        self._steps += 1
        if self._engine.fp16_enabled() and not self._engine.was_step_applied():
            # The loss scale was too high: the update is left out and the scale lowered.
            return None
        norm = self._engine.get_global_grad_norm()
        return plain_norm if norm is None else float(norm)

    def gradient_norms(self, part_of: Callable[[str], str]) -> dict[str, float]:
        """Norms of the global batch's gradient by part of the model, before clipping. Collective.

        Valid between the last backward pass of a step and the step; gathers every gradient, so not for every step.

        Args:
            part_of: from a parameter's name to its part's.
        """
        from deepspeed.utils import safe_get_full_grad

        scale = float(self._engine.optimizer.loss_scale) if self._engine.fp16_enabled() else 1.0
        squares: dict[str, Tensor] = {}
        for name, parameter in self.parameters:
            gradient = safe_get_full_grad(parameter)
            if gradient is not None:
                part = part_of(name)
                squares[part] = squares.get(part, torch.zeros((), device=gradient.device)) + (gradient.float() / scale).square().sum()
        return {part: float(square.sqrt()) for part, square in squares.items()}

    def trained_state(self) -> TrainedState:
        """Gather the trained state on every rank. Collective: all ranks call it after at least one step."""
        self._link_moments()
        return TrainedState(self._steps, {name: self._gather(parameter) for name, parameter in self.parameters})

    def load_trained_state(self, state: TrainedState, frames: Tensor, tokens: Tensor) -> None:
        """Continue from `state`. Collective.

        DeepSpeed creates and links its optimizer states in the first step only, so one step with
        learning rate 0 is taken on any valid micro-batch, and everything it touched is overwritten.

        Raises:
            CheckpointError: names or shapes differ from the model's.
        """
        self._check(state)
        for i in range(self._accumulation_steps):
            video_features, text_features = self.forward(frames, tokens)
            self.backward((video_features.sum() + text_features.sum()) * 0.0)
            self.step(0.0, is_boundary=i == self._accumulation_steps - 1)
        self._link_moments()
        for name, parameter in self.parameters:
            self._scatter(parameter, state.parameters[name])
        self._set_optimizer_step(state.step)
        self._steps = state.step

    def _gather(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if not _is_partitioned(parameter):
            state = self._base_optimizer().state[parameter]
            return {"param": parameter.detach().float().cpu().clone(), **{m: state[m].detach().cpu().clone() for m in _MOMENTS}}
        gathered = {"param": safe_get_full_fp32_param(parameter)}
        gathered |= {m: safe_get_full_optimizer_state(parameter, m) for m in _MOMENTS}
        return {key: value.detach().float().cpu().clone() for key, value in gathered.items()}

    def _scatter(self, parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
        from deepspeed import utils

        on_device = {key: value.to(parameter.device) for key, value in values.items()}
        if hasattr(parameter, "ds_id"):
            # Not the "full" setters: they fail where the world size does not divide the parameter.
            utils.safe_set_local_fp32_param(parameter, _own_partition(parameter, on_device["param"]))
            for moment in _MOMENTS:
                utils.safe_set_local_optimizer_state(parameter, _own_partition(parameter, on_device[moment]), moment)
            parameter.ds_tensor.data.copy_(_own_partition(parameter, on_device["param"]))  # type: ignore[attr-defined]
            if parameter.data.numel() == on_device["param"].numel():
                # Small parameters stay gathered between steps.
                parameter.data.copy_(on_device["param"])
            return
        parameter.data.copy_(on_device["param"])
        if not _is_partitioned(parameter):
            for moment in _MOMENTS:
                self._base_optimizer().state[parameter][moment].copy_(on_device[moment])
            return
        utils.safe_set_full_fp32_param(parameter, on_device["param"])
        for moment in _MOMENTS:
            utils.safe_set_full_optimizer_state(parameter, on_device[moment], moment)

    def _link_moments(self) -> None:
        """Make DeepSpeed find the moments of every parameter group.

        Stages 1 and 2 look them up once, right after the first group's first step, when the other groups
        have none yet.
        """
        optimizer = self._engine.optimizer
        if hasattr(optimizer, "_hp_optimizer_states_linked"):
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()

    def _base_optimizer(self) -> torch.optim.Optimizer:
        optimizer = self._engine.optimizer
        return getattr(optimizer, "optimizer", optimizer)  # type: ignore[no-any-return]

    def _set_optimizer_step(self, step: int) -> None:
        for state in self._base_optimizer().state.values():
            if torch.is_tensor(state.get("step")):
                state["step"].fill_(step)
            elif "step" in state:
                state["step"] = step

    def _check(self, state: TrainedState) -> None:
        expected = dict(self.parameters)
        if set(expected) != set(state.parameters):
            difference = sorted(set(expected) ^ set(state.parameters))
            raise CheckpointError(
                f"checkpoint and model differ in the trained parameters {difference[:3]}; use the config the run began with"
            )
        for name, values in state.parameters.items():
            shape = tuple(getattr(expected[name], "ds_shape", expected[name].shape))
            if tuple(values["param"].shape) != shape:
                given = tuple(values["param"].shape)
                raise CheckpointError(f"{name} is {given} in the checkpoint and {shape} in the model; use the config the run began with")


def _is_partitioned(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _own_partition(parameter: nn.Parameter, whole: Tensor) -> Tensor:
    """This rank's equal share of a parameter under ZeRO-3, the last one padded with zeros."""
    size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    padded = torch.nn.functional.pad(whole.flatten(), (0, size * distributed.world_size() - whole.numel()))
    return padded[size * distributed.rank() : size * (distributed.rank() + 1)]


def _module_dtype(engine: Any) -> torch.dtype:
    if engine.bfloat16_enabled():
        return torch.bfloat16
    return torch.float16 if engine.fp16_enabled() else torch.float32


def _own_gpu() -> torch.device:
    """This rank's GPU, made the current one."""
    local_rank, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    # Slurm can show each task its own GPU only, which is then the first for all of them.
    index = 0 if num_gpus == 1 and "SLURM_PROCID" in os.environ else local_rank
    if index >= num_gpus:
        raise ConfigError(
            f"rank {os.environ['RANK']} is number {local_rank} of its host, which shows {num_gpus} GPUs; start one process a GPU"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _import_deepspeed(use_cuda: bool) -> Any:
    import logging
    import warnings

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls functions that torch has renamed, in each step of stage 3.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    import deepspeed

    if not use_cuda:
        # The shared-memory all-reduce is compiled with g++ on first use, and a build that was killed leaves
        # a lock on which every later run hangs. Prompts are a few MB: gloo alone is fast enough.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
