"""The typed configuration of a training run and its evaluation.

Frozen models, unknown keys refused, cross-field checks with both sides in the message. Imports no
torch, so that reading a config is instant.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dgl_scale.config_section import Fraction, Name, NonNegativeInt, PositiveFloat, PositiveInt, Section


class ModelConfig(Section):
    """A frozen CLIP and the DGL prompts over it (paper, sections 3.2 to 3.4)."""

    clip: str
    """An open_clip ViT model name, or the path of a model-config JSON file."""
    pretrained: str | None = None
    """An open_clip tag, the path of a state dict, or null for random weights."""
    latent_space: Literal["linear", "transformer"] | None = "transformer"
    """Where local and text prompts come from; null means frozen CLIP with averaged frame features."""
    num_frames: PositiveInt = 12
    """Frames a video, T."""
    num_local_prompts: NonNegativeInt = 4
    """Local prompts per frame."""
    num_global_prompts: PositiveInt = 4
    """Global prompts per video."""
    num_prefix_prompts: NonNegativeInt = 4
    """Text prompts after the start token."""
    num_postfix_prompts: NonNegativeInt = 4
    """Text prompts after the caption; causal masking keeps the feature from seeing them."""
    prompt_depth: PositiveInt | None = None
    """How many layers' worth of latent prompts; null means one for each vision layer."""
    video_feature: Literal["global_0", "global_mean", "frame_mean", "global_and_frame_mean", "global_0_and_frame_mean"] = "global_0"
    """Which output tokens become the video feature."""


class CacheConfig(Section):
    """Whole shards of remote splits on this machine's disk, for all processes of all runs."""

    folder: str = "~/.cache/dgl-scale/shards"
    """Best on a local disk; may be shared by runs and users."""
    max_gib: PositiveFloat = 200.0
    """Above that, shards that were not read for longest are removed; a training split should fit."""


class StreamSource(Section):
    """WebDataset shards of any maker that are read alike."""

    shards: str
    """Paths, `s3://`, `gs://`, `https://` or `pipe:` addresses; `{000000..000099}` counts, `::` separates."""
    samples: PositiveInt
    """How many samples they hold together; need not be exact."""
    weight: PositiveFloat | None = None
    """Its share of the samples, relative to the other weights; null: its number of samples."""


class StreamingConfig(Section):
    """Reading shards that have no index of ours, one after the other."""

    sources: Annotated[tuple[StreamSource, ...], Field(min_length=1)]
    samples_per_epoch: PositiveInt | None = None
    """Fixes the steps of an epoch; null: the samples of all sources."""
    shuffle_buffer: NonNegativeInt = 1000
    """Samples, undecoded, from which a reading process draws the next one."""
    allow_pipe: bool = False
    """Whether `pipe:` addresses may run their shell commands."""


class DataConfig(Section):
    """Shards to read and how a sample becomes a batch."""

    train: str | None = None
    """Split to train on: a folder with `index.json`, or its address (`s3://…`, `gs://…`, `https://…`)."""
    streaming: StreamingConfig | None = None
    """Instead of `train`: foreign WebDataset shards to train on, read as a stream."""
    validation: str | None = None
    """Split by which the best checkpoint is chosen; null: none is chosen."""
    test: str | None = None
    """Split of the final evaluation."""
    cache: CacheConfig | None = CacheConfig()
    """Where shards of remote splits are kept; null: nowhere, each sample is fetched alone whenever it is read."""
    exclude: str | None = None
    """File of keys, one a line, left out of training, as `dgl-scale shards leakage --write-exclusions` writes it; null: none."""
    max_words: Annotated[int, Field(ge=3)] = 32
    """Token positions of a caption, start and end tokens included."""
    train_frames: Literal["random", "uniform"] = "random"
    """In training: one random frame of each of T segments, or the evaluation's frames."""
    num_workers: NonNegativeInt = 2
    """Reading processes per rank."""
    prefetch: PositiveInt = 2
    """Micro-batches that each reading process decodes ahead."""
    stall_timeout_s: PositiveFloat = 300.0
    """Seconds in which neither a batch comes nor a byte arrives, after which a run that waits for data ends and names the source."""
    last_batch: Literal["drop", "wrap"] = "drop"
    """An epoch's last partial batch: dropped, or filled from the epoch's beginning."""
    max_corrupt_fraction: Fraction = 0.01
    """Share of unreadable samples above which the run stops."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.train is not None and self.streaming is not None:
            raise ValueError("give train or streaming, not both")
        if self.exclude is not None and self.streaming is not None:
            raise ValueError("exclude needs an index, which streaming does not have; remove one of them")
        return self


class OptimConfig(Section):
    """AdamW with linear warm-up and cosine decay (paper, section 4.1)."""

    lr: PositiveFloat = 2e-3
    """Peak learning rate."""
    min_lr: Annotated[float, Field(ge=0.0)] = 1e-8
    """Learning rate at the last step."""
    warmup_fraction: Fraction = 0.1
    """Share of all steps with linear warm-up."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    eps: PositiveFloat = 1e-6
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.2
    """Not applied to biases."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Bound on the norm of the global batch's gradient; null: no clipping."""


class TrainingConfig(Section):
    """Size, precision and bookkeeping of a training run."""

    global_batch_size: PositiveInt
    """Pairs an optimizer step, over all ranks and accumulation steps."""
    micro_batch_size: PositiveInt | None = None
    """Pairs a rank and backward pass; null: the rank's whole share at once."""
    epochs: PositiveInt | None = None
    max_steps: PositiveInt | None = None
    """Optimizer steps; give either `epochs` or `max_steps`."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Compute type of the frozen model and activations; prompts keep fp32 masters. `auto`: what the device is fastest at
    (bf16 on GPUs that have it and on CPUs that multiply it natively, measured at start); the run's config.yaml records it."""
    deepspeed: str = "configs/deepspeed/zero1.json"
    """DeepSpeed config file; its ZeRO stage and communication settings are used."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory for one more forward."""
    compile: bool = False
    """Run the towers' layers through torch.compile: faster on a GPU after a minute of compiling. ZeRO stages 0 to 2."""
    deterministic: bool = False
    """Reproducible kernels only: two runs on equal hardware and ranks are equal bit by bit, on GPUs too, and slower there."""
    rendezvous_timeout_s: PositiveFloat = 300.0
    """How long the ranks wait at the start for those that have not come; they are then named. A host without a way to it: 30 s.
    Then the same time for connections between all of them."""
    log_every_steps: PositiveInt = 10
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Where metrics go besides metrics.jsonl and TensorBoard; the packages are not among the requirements."""
    peak_tflops: PositiveFloat | None = None
    """Peak rate of a device in the compute type, for the model FLOP utilisation; null: of the known GPUs, else none is recorded."""
    checkpoint_every_steps: PositiveInt = 500
    validation: Literal["inline", "watched"] = "inline"
    """Who evaluates checkpoints on `data.validation`: the run itself, or `dgl-scale evaluate --watch` beside it."""
    keep_checkpoints: PositiveInt = 3
    """Newest complete checkpoints to keep, the best one beside them."""
    mirror: str | None = None
    """Address (`s3://…`, `gs://…`) of a folder of run folders that gets a copy of each complete checkpoint; a machine without the
    run's newest checkpoint goes on from there. Null: none."""
    keep_every_steps: PositiveInt | None = None
    """Checkpoints of multiples of so many steps are kept for ever; null: none."""
    background_checkpoints: bool = True
    """Write checkpoints in a thread while training goes on; the step waits for the copy to memory only."""
    max_minutes: PositiveFloat | None = None
    """Wall-clock limit of a start: then a checkpoint and exit 75, to go on by the same command. Leave room for both before the
    scheduler's own limit."""
    preemption_file: str | None = None
    """A file whose appearance announces the end of the machine: then a checkpoint and exit 75."""
    hang_timeout_s: PositiveFloat = 1800.0
    """When nothing moves for so long, every rank writes the stacks of its threads and ends. Longer than the longest validation."""
    check_ranks_every_steps: PositiveInt | None = 100
    """Compare the prompts of all ranks, bit for bit; null: never."""
    check_frozen_weights: bool = True
    """Hash the frozen weights at start and end (a second per GB)."""
    max_loss_factor: PositiveFloat | None = 4.0
    """The run stops when the loss stays above so many times that of chance, log(global_batch_size), for 20 steps; null: never."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` goes on from the newest complete checkpoint of the run folder."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("give exactly one of epochs and max_steps")
        if self.micro_batch_size is not None and self.micro_batch_size > self.global_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} is larger than global_batch_size {self.global_batch_size}")
        return self


class QueryBankConfig(Section):
    """QB-Norm (arXiv 2112.12777): text-to-video scores normalised by how popular a video is with training captions."""

    theta: PositiveInt = 1
    """A video is activated if at least so many captions of the bank have it among their first k."""
    k: PositiveInt = 1
    """How many videos of each caption of the bank are counted."""
    betas: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
    """Inverse temperatures of the cosine to choose from, by R@1 on the validation split; a single one is taken as it is."""
    max_bank: PositiveInt = 50_000
    """Most training captions in the bank; of more, so many are taken at even distances."""


class EvaluationConfig(Section):
    """How retrieval is measured."""

    split: Literal["test", "validation"] = "test"
    batch_size: PositiveInt = 32
    """Videos (and captions) encoded at once by a worker."""
    num_workers: PositiveInt = 1
    """Ray actors."""
    cpus_per_worker: PositiveFloat = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0.0)] = 0.0
    start_timeout_s: PositiveFloat = 300.0
    """How long to wait while not a single worker is ready."""
    feature_store: str | None = ".features"
    """Folder of encoded features, relative to `output`, for later evaluations; null: none are kept."""
    feature_store_gib: PositiveFloat = 20.0
    """What the store may hold after an evaluation; the least recently used features go first."""
    watch_order: Literal["oldest", "newest"] = "oldest"
    """Which of several waiting checkpoints `--watch` takes first, when it falls behind."""
    watch_seconds: PositiveFloat = 10.0
    """How often `--watch` looks for new checkpoints."""
    watch_patience_s: PositiveFloat = 300.0
    """How long the run folder that is watched may be missing."""
    watch_claim_s: PositiveFloat = 120.0
    """How long the claim of another watcher, of a run in object storage, holds without a sign of life."""
    block_size: PositiveInt = 1024
    """Queries a block of the similarity matrix; bounds memory, never the result."""
    top_k: PositiveInt = 10
    """Best candidates kept of each query."""
    bootstrap_samples: PositiveInt = 2000
    """Resamples (by video) behind the confidence intervals."""
    qb_norm: QueryBankConfig | None = None
    """Report QB-Norm too, under `rerank`; null: no bank is encoded."""


class RunConfig(Section):
    """Everything that a training run and its evaluation depend on."""

    name: Name
    """Name of the run folder."""
    output: str = "runs"
    """Folder of run folders."""
    seed: NonNegativeInt = 42
    model: ModelConfig
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    training: TrainingConfig
    evaluation: EvaluationConfig = EvaluationConfig()
