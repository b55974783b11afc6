"""The typed configuration of a training run and of a shard build.

Frozen models, unknown keys refused, cross-field checks with both sides in the message. Imports no
torch, so that reading a config is instant.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from dgl_scale.config_section import Fraction, Name, NonNegativeInt, PositiveFloat, PositiveInt
from dgl_scale.config_section import Section as Section
from dgl_scale.dataset_config import (
    DATASETS,
    ActivityNetConfig,
    DatasetConfig,
    DidemoConfig,
    LsmdcConfig,
    MsrvttConfig,
    MsvdConfig,
    VatexConfig,
)


class ModelConfig(Section):
    """A frozen CLIP and the DGL prompts over it (METHOD of the paper, sections 3.2-3.4)."""

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


class DataConfig(Section):
    """Shards to read and how a sample becomes a batch."""

    train: str | None = None
    """Split folder with `index.json`, to train on."""
    validation: str | None = None
    """Split folder by which the best checkpoint is chosen; null: none is chosen."""
    test: str | None = None
    """Split folder of the final evaluation."""
    exclude: str | None = None
    """File of keys, one a line, left out of training, as `dgl-scale shards leakage --write-exclusions` writes it; null: none."""
    max_words: Annotated[int, Field(ge=3)] = 32
    """Token positions of a caption, start and end tokens included."""
    train_frames: Literal["random", "uniform"] = "random"
    """In training: one random frame of each of T segments, or the evaluation's frames."""
    num_workers: NonNegativeInt = 2
    """Reading processes per rank."""
    last_batch: Literal["drop", "wrap"] = "drop"
    """An epoch's last partial batch: dropped, or filled from the epoch's beginning."""
    max_corrupt_fraction: Fraction = 0.01
    """Share of unreadable samples above which the run stops."""


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
    log_every_steps: PositiveInt = 10
    checkpoint_every_steps: PositiveInt = 500
    keep_checkpoints: PositiveInt = 3
    """Newest complete checkpoints to keep, the best one beside them."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` goes on from the newest complete checkpoint of the run folder."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("give exactly one of epochs and max_steps")
        if self.micro_batch_size is not None and self.micro_batch_size > self.global_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} is larger than global_batch_size {self.global_batch_size}")
        return self


class EvaluationConfig(Section):
    """How retrieval is measured."""

    split: Literal["test", "validation"] = "test"
    batch_size: PositiveInt = 32
    """Videos (and captions) encoded at once by a worker."""
    num_workers: PositiveInt = 1
    """Ray actors."""
    cpus_per_worker: PositiveFloat = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0.0)] = 0.0
    block_size: PositiveInt = 1024
    """Queries a block of the similarity matrix; bounds memory, never the result."""
    top_k: PositiveInt = 10
    """Best candidates kept of each query."""
    bootstrap_samples: PositiveInt = 2000
    """Resamples (by video) behind the confidence intervals."""


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


class FramesConfig(Section):
    """Which frames of a video are stored, and how."""

    fps: PositiveFloat | None = 3.0
    """Frames a second of the source's time; null: `max_frames` uniform ones."""
    max_frames: PositiveInt | None = None
    """At most so many frames a video, uniform over it; null: no limit."""
    short_side: PositiveInt | None = 224
    """Pixels of the shorter side after bicubic resizing; null keeps the source's size."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fps is None and self.max_frames is None:
            raise ValueError("give fps, max_frames or both")
        return self


class DecoderConfig(Section):
    """Limits of one decoding process; exceeding them costs that video only."""

    timeout_s: PositiveFloat = 120.0
    memory_limit_gib: PositiveFloat = 4.0


class StorageConfig(Section):
    """Transfers from and to object storage and web servers."""

    scratch: str | None = None
    """Folder for the videos and shards that a task fetches or writes; null: the system's temporary folder."""
    max_video_gib: PositiveFloat = 4.0
    """A larger remote video costs itself."""
    attempts: PositiveInt = 8
    """Tries of a transfer that is cut, slow or corrupt, with growing pauses."""
    timeout_s: PositiveFloat = 60.0
    """Silence of a server that ends a try."""


class ColumnsConfig(Section):
    """Column names of a table of videos."""

    video: str = "path"
    """Column of paths or URLs, or a pattern of columns such as `{page_dir}/{videoid}.mp4`."""
    caption: str = "captions"
    """A text, or a list of texts; rows of the same video are joined."""
    video_id: str | None = None
    """null: the file's name without its suffix."""
    split: str | None = None
    """null: all rows belong to `default_split`."""
    start: str | None = None
    end: str | None = None


class ShardsConfig(Section):
    """A shard build: from a dataset's own files to WebDataset shards."""

    dataset: Name
    """Name in the shards' file names."""
    format: Literal["table", "folder", "msrvtt", "msvd", "vatex", "lsmdc", "activitynet", "didemo"]
    """Which annotation reader: a CSV, JSONL or Parquet table, a folder of videos with caption files, or a dataset's own files."""
    annotations: str | None = None
    """The annotation file (table)."""
    encoding: str = "utf-8"
    """Character encoding of a CSV or JSONL table."""
    msrvtt: MsrvttConfig | None = None
    msvd: MsvdConfig | None = None
    vatex: VatexConfig | None = None
    lsmdc: LsmdcConfig | None = None
    activitynet: ActivityNetConfig | None = None
    didemo: DidemoConfig | None = None
    """The section of the same name as `format` says where the dataset's annotation files are."""
    videos: str
    """Folder of the video files; paths in the annotations stay inside it."""
    output: str
    """Folder that receives one folder a split."""
    columns: ColumnsConfig = ColumnsConfig()
    default_split: Name = "train"
    splits: tuple[Name, ...] | None = None
    """Splits to build; null: all."""
    validation_videos: PositiveInt | None = None
    """Videos of split train that become split validation, for datasets that have none; null: none."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Instead of `validation_videos`: the share of the training videos, approximately."""
    validation_seed: NonNegativeInt = 0
    """Seed of that choice."""
    frames: FramesConfig = FramesConfig()
    decoder: DecoderConfig = DecoderConfig()
    storage: StorageConfig = StorageConfig()
    max_samples_per_shard: PositiveInt = 1000
    max_shard_bytes: PositiveInt | None = None
    """A shard whose tar would grow larger goes on in another (a single larger sample is alone in its tar); null: no limit."""
    shuffle_seed: NonNegativeInt | None = 0
    """Seed of the order of samples within a split; null keeps the annotations' order."""
    max_failed_fraction: Fraction = 0.05
    """Share of failed videos above which the build exits with 1 (the good shards stay)."""
    require_coverage: Fraction | None = None
    """Share of each split's annotated videos whose file must be there, or the build exits with 1; null: any."""
    cpus_per_task: PositiveFloat = 1.0
    max_tasks_in_flight: PositiveInt = 64

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.format == "table" and self.annotations is None:
            raise ValueError("format: table needs annotations, the path of the table")
        for name in DATASETS:
            given = getattr(self, name) is not None
            if given and self.format != name:
                raise ValueError(f"section {name} is for format: {name}, and the format is {self.format}")
            if self.format == name and not given:
                raise ValueError(f"format: {name} needs a section {name} with its annotation files (docs/datasets.md)")
        if self.validation_videos is not None and self.validation_fraction is not None:
            raise ValueError("give validation_videos or validation_fraction, not both")
        return self

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, name: str) -> str:
        try:
            "".encode(name)
        except LookupError as error:
            raise ValueError("no such character encoding; utf-8, cp1252 and latin-1 are usual") from error
        return name

    @model_serializer(mode="wrap")
    def _without_other_datasets(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        return {key: value for key, value in values.items() if value is not None or key not in DATASETS}

    @property
    def dataset_section(self) -> DatasetConfig | None:
        """The section of a published dataset; None for tables and folders."""
        section: DatasetConfig | None = getattr(self, self.format) if self.format in DATASETS else None
        return section
