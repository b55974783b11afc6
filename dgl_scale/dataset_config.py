"""The sections of a shard build that say where a published dataset's annotation files are (docs/datasets.md)."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from dgl_scale.config_section import Section

DATASETS = ("msrvtt", "msvd", "vatex", "lsmdc", "activitynet", "didemo")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Files = Annotated[tuple[str, ...], BeforeValidator(_as_list)]


class DatasetConfig(Section):
    """Base of the sections that name a published dataset's annotation files (docs/datasets.md)."""

    file_keys: ClassVar[tuple[str, ...]]
    """The keys whose values are paths of files."""
    split_keys: ClassVar[tuple[str, ...]] = ("train", "validation", "test")
    """Those of them that give a split each; at least one is needed."""

    def files(self) -> dict[str, tuple[str, ...]]:
        """The files of each of `file_keys` that is set."""
        values = {key: getattr(self, key) for key in self.file_keys}
        return {key: (value,) if isinstance(value, str) else value for key, value in values.items() if value}

    def with_files(self, change: Callable[[str, str], str]) -> Self:
        """A copy in which each path is `change(key, path)`."""
        changed = {key: tuple(change(key, path) for path in paths) for key, paths in self.files().items()}
        return self.model_copy(update={key: paths[0] if isinstance(getattr(self, key), str) else paths for key, paths in changed.items()})

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        if self.split_keys and not any(key in self.files() for key in self.split_keys):
            raise ValueError(f"name the annotation file of at least one split ({', '.join(self.split_keys)})")
        return self


class MsrvttConfig(DatasetConfig):
    """MSR-VTT."""

    file_keys = ("captions", "train", "test")
    split_keys = ()
    split: Literal["9k", "7k", "full"] = "9k"
    """9k and 7k: `train` against the 1k-A test videos of `test`; full: the split that `captions` itself states."""
    captions: Files
    """JSON with `videos` and `sentences`, one file or several."""
    train: str | None = None
    """9k, 7k: list of training ids (CSV with `video_id`, or an id a line)."""
    test: str | None = None
    """9k, 7k: the JSFUSION csv, whose `sentence` is the one query of a test video."""

    @model_validator(mode="after")
    def _check_split(self) -> Self:
        lists = [name for name in ("train", "test") if getattr(self, name) is not None]
        if self.split == "full" and lists:
            raise ValueError(f"split full takes no {' and no '.join(lists)} (set to null): the JSON states the split of every video")
        if self.split != "full" and len(lists) < 2:
            raise ValueError(f"split {self.split} needs train, the list of its training ids, and test, the JSFUSION csv")
        return self


class MsvdConfig(DatasetConfig):
    """MSVD (YouTube2Text)."""

    file_keys = ("captions", "train", "validation", "test", "mapping")
    captions: str
    """`raw-captions.pkl`, or the publisher's `AllVideoDescriptions.txt`."""
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    """Lists of clip names, a line each; null leaves a split out."""
    mapping: str | None = None
    """`youtube_mapping.txt`, where the video files are called vid1, vid2 and so on."""


class VatexConfig(DatasetConfig):
    """VATEX."""

    file_keys = ("captions", "train", "validation", "test")
    language: Literal["english", "chinese", "both"] = "english"
    captions: Files = ()
    """Caption files (JSON) for splits that are lists of ids."""
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    """A split's own caption file (.json), or a list of its clip ids (.txt, .csv, .npy); null leaves a split out."""

    @model_validator(mode="after")
    def _check_lists(self) -> Self:
        lists = [key for key in self.split_keys if (path := getattr(self, key)) is not None and not path.endswith(".json")]
        if lists and not self.captions:
            raise ValueError(f"{lists[0]} is a list of ids; captions must name the JSON files that hold their captions")
        return self


class LsmdcConfig(DatasetConfig):
    """LSMDC, the 2016 edition."""

    file_keys = ("train", "validation", "test")
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    """Tab-separated files without header; null leaves a split out."""


class ActivityNetConfig(DatasetConfig):
    """ActivityNet Captions, a paragraph a video."""

    file_keys = ("train", "val_1", "val_2")
    split_keys = file_keys
    train: str | None = None
    val_1: str | None = None
    """The published retrieval test set."""
    val_2: str | None = None
    """The same videos as `val_1` with other captions; null leaves a split out."""
    caption_order: Literal["time", "file"] = "time"
    """Order in which the captions of a video are joined; published code joins them as they stand in the file."""


class DidemoConfig(DatasetConfig):
    """DiDeMo, a paragraph a video."""

    file_keys = ("train", "validation", "test")
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    """JSON files; null leaves a split out."""
    caption_order: Literal["time", "file"] = "file"
    """Order in which the captions of a video are joined; published code joins them as they stand in the file."""
