"""What a training run costs on so many GPUs, from its config alone: memory, network, reading, checkpoints, time.

Arithmetic: `model.estimate` counts operations and activations, `network` bytes. docs/scale.md compares it with what was measured.
"""

from dataclasses import dataclass, replace

from dgl_scale.config import RunConfig
from dgl_scale.data.index import load_split
from dgl_scale.data.order import rank_places, steps_per_epoch
from dgl_scale.errors import ConfigError, DataError
from dgl_scale.model.backbone import load_backbone
from dgl_scale.model.clip_shape import ClipShape
from dgl_scale.model.estimate import StepEstimate, StepSize, estimate_step, frozen_parameters, reached_parameters, trained_parameters
from dgl_scale.model.precision import DTYPES, Precision
from dgl_scale.storage.urls import is_url
from dgl_scale.training.deepspeed_config import Stage3Limits, stage_3_limits, zero_stage
from dgl_scale.training.network import NetworkBytes, network_bytes
from dgl_scale.training.utilisation import peak_tflops

GPU = "H100"
STAGES = range(4)
# The loader decodes 12 frames of 150 clips in a second of a core (docs/performance-reading.md).
FRAMES_PER_CORE_S = 1800
_STATE_BYTES = 16
# Of a row of the split's index while it is read; every rank holds it whole (docs/scale.md).
_INDEX_ROW_BYTES = 560


@dataclass(frozen=True)
class Assumptions:
    """What a config does not say.

    Attributes:
        videos: of the training split; None: unknown, and with it the steps of a run of epochs.
        captions: a video.
        sample_bytes: of a stored video; all its frames are read whichever are taken.
        utilisation: share of the GPU's peak rate at which a step's operations are done.
        network_gbit: a second, that a GPU sends.
    """

    videos: int | None = None
    captions: float = 1.0
    sample_bytes: float = 1.3e6
    utilisation: float = 0.4
    network_gbit: float = 12.5


@dataclass(frozen=True)
class RunEstimate:
    """A run on `world_size` GPUs.

    Attributes:
        gpu_bytes: of a GPU at its highest moment.
        step_flops: done by a GPU in a step, second forward passes included.
        network: sent by a GPU in a step, under each ZeRO stage.
        network_s: of a step, nothing else going on meanwhile.
        total_steps: None where the number of videos is unknown.
        read_bytes_per_s: from storage or its cache, by all GPUs together.
        reading_cores: that decode frames, a GPU.
        index_bytes: of host memory that a rank takes for the index of the split; None where the number of videos is unknown.
    """

    world_size: int
    micro_batch_size: int
    accumulation_steps: int
    gpu_bytes: float
    step_flops: float
    network: tuple[NetworkBytes, ...]
    compute_s: float
    network_s: float
    total_steps: int | None
    read_bytes_per_s: float
    reading_cores: float
    index_bytes: float | None
    checkpoint_bytes: int

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return self.compute_s + self.network_s


def estimate_run(config: RunConfig, world_size: int, assumptions: Assumptions) -> RunEstimate:
    """Estimate a run.

    Raises:
        ConfigError: the ranks cannot share the global batch equally, or there is nothing to train; the CLIP or the file of
            DeepSpeed is not known.
    """
    if config.model.latent_space is None:
        raise ConfigError("model.latent_space is null: a frozen CLIP has nothing to train; choose linear or transformer")
    training, dtype = config.training, DTYPES[precision_of(config)]
    places = rank_places(training.global_batch_size, 0, world_size, training.micro_batch_size)
    share, micro, accumulation = training.global_batch_size // world_size, places[0].stop - places[0].start, len(places)
    shape = load_backbone(config.model.clip, config.model.pretrained, with_weights=False).shape
    step = _step(config, shape, micro)
    sizes = (trained_parameters(config.model, shape), reached_parameters(config.model, shape), frozen_parameters(shape))
    stage, limits = zero_stage(training), stage_3_limits(training.deepspeed)
    network = tuple(
        network_bytes(each, world_size, share, shape.embed_dim, *sizes, dtype.itemsize, accumulation=accumulation, kept=limits.kept)
        for each in STAGES
    )
    flops = share / micro * (step.model_flops + step.recomputed_flops + (step.forward_flops if accumulation > 1 else 0.0))
    compute_s = flops / (assumptions.utilisation * 1e12 * gpu_tflops(config))
    network_s = network[stage].total / (assumptions.network_gbit * 1e9 / 8)
    videos_per_s = training.global_batch_size / (compute_s + network_s)
    return RunEstimate(
        world_size=world_size,
        micro_batch_size=micro,
        accumulation_steps=accumulation,
        gpu_bytes=rank_bytes(stage, world_size, step, dtype.itemsize, limits),
        step_flops=flops,
        network=network,
        compute_s=compute_s,
        network_s=network_s,
        total_steps=_total_steps(config, assumptions),
        read_bytes_per_s=videos_per_s * assumptions.sample_bytes,
        reading_cores=videos_per_s * config.model.num_frames / world_size / FRAMES_PER_CORE_S,
        index_bytes=None if assumptions.videos is None else _INDEX_ROW_BYTES * assumptions.videos,
        checkpoint_bytes=checkpoint_bytes(sizes[0]),
    )


def checkpoint_bytes(num_trained: int) -> int:
    """Of a checkpoint: prompts, and once more with AdamW's two moments, all float32; the files' heads are left out."""
    return _STATE_BYTES * num_trained


def rank_bytes(stage: int, world_size: int, step: StepEstimate, bytes_per_value: int, limits: Stage3Limits) -> float:
    """Memory of a rank at its highest moment under a ZeRO stage (arXiv 1910.02054, figure 1, for what is trained).

    The 16 bytes a trained number are its weight and gradient in the compute type, and the optimizer's float32. Stage 1 divides the
    optimizer's, stage 2 gradients too, stage 3 weights too. Frozen weights are whole at stages 0 to 2; at stage 3 a rank has its share of
    them, and as many gathered ones as `limits` allows.
    """
    number = step.trained_bytes / _STATE_BYTES
    weights = gradients = number * bytes_per_value
    optimizer = step.trained_bytes - weights - gradients
    divided = (optimizer, gradients, weights)[:stage]
    trained = step.trained_bytes - sum(divided) * (1 - 1 / world_size)
    gathered = min(step.frozen_bytes, (limits.kept + limits.ahead) * bytes_per_value)
    frozen = step.frozen_bytes / world_size + gathered if stage == 3 else step.frozen_bytes
    return trained + frozen + step.saved_bytes + step.transient_bytes


def precision_of(config: RunConfig) -> Precision:
    """The compute type; where the config leaves it to the device, a GPU's."""
    return "bf16" if config.training.precision == "auto" else config.training.precision


def gpu_tflops(config: RunConfig) -> float:
    """Peak rate of the GPU: `training.peak_tflops`, else of an H100."""
    known = peak_tflops(GPU, DTYPES[precision_of(config)])
    assert known is not None
    return config.training.peak_tflops or known


def with_split(config: RunConfig, assumptions: Assumptions) -> Assumptions:
    """What the training split says of itself, where it is on this machine and nothing else was said of it."""
    data = config.data
    if data.streaming is not None and assumptions.videos is None:
        samples = data.streaming.samples_per_epoch or sum(source.samples for source in data.streaming.sources)
        return replace(assumptions, videos=samples)
    if assumptions.videos is not None or data.train is None or is_url(data.train):
        return assumptions
    try:
        index = load_split(data.train, data.exclude, data.cache)
    except DataError:
        return assumptions
    captions, sample_bytes = index.total_captions / index.num_videos, float(index.size.mean())
    return replace(assumptions, videos=index.num_videos, captions=captions, sample_bytes=sample_bytes)


def _step(config: RunConfig, shape: ClipShape, micro: int) -> StepEstimate:
    size = StepSize(micro, micro, config.model.num_frames, config.data.max_words)
    recompute = config.training.activation_checkpointing
    itemsize = DTYPES[precision_of(config)].itemsize
    return estimate_step(config.model, shape, size, bytes_per_value=itemsize, activation_checkpointing=recompute)


def _total_steps(config: RunConfig, assumptions: Assumptions) -> int | None:
    training = config.training
    if training.max_steps is not None or assumptions.videos is None:
        return training.max_steps
    pairs = round(assumptions.videos * assumptions.captions)
    return (training.epochs or 0) * steps_per_epoch(pairs, training.global_batch_size, config.data.last_batch)
