"""The typed configuration of a shard build."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from dgl_scale.config_section import Fraction, Name, NonNegativeInt, PositiveFloat, PositiveInt, Section
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
from dgl_scale.storage_config import StorageConfig


class FramesConfig(Section):
    """Which frames of a video are stored, and how."""

    fps: PositiveFloat | None = 3.0
    """Frames a second of the source's time; null: `max_frames` uniform ones."""
    max_frames: PositiveInt | None = None
    """At most so many frames a video, uniform over it; null: no limit."""
    short_side: PositiveInt | None = 224
    """Pixels of the shorter side after bicubic resizing; null keeps the source's size."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    jpeg_tables: Literal["standard", "flat"] = "standard"
    """How a quality is spent: by JPEG's own tables, made for eyes, or equally on all frequencies: smaller at equal error."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fps is None and self.max_frames is None:
            raise ValueError("give fps, max_frames or both")
        return self


class DecoderConfig(Section):
    """Limits of one decoding process; exceeding them costs that video only."""

    timeout_s: PositiveFloat = 120.0
    memory_limit_gib: PositiveFloat = 4.0


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
