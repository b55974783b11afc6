"""From the config of a build to its annotated videos: the choice of the reader, and the validation split."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from dgl_scale.dataset_config import ActivityNetConfig, DatasetConfig, DidemoConfig, LsmdcConfig, MsrvttConfig, MsvdConfig, VatexConfig
from dgl_scale.errors import DataError
from dgl_scale.shards_config import ShardsConfig
from dgl_scale.storage.urls import is_url
from shard_tools.annotations.activitynet import read_activitynet
from shard_tools.annotations.annotation_files import AnnotationFile, read_bytes
from shard_tools.annotations.didemo import read_didemo
from shard_tools.annotations.folder import read_folder, video_files
from shard_tools.annotations.lsmdc import read_lsmdc
from shard_tools.annotations.msrvtt import read_msrvtt
from shard_tools.annotations.msvd import read_msvd
from shard_tools.annotations.table import table_rows
from shard_tools.annotations.validation import hold_out_fraction, hold_out_videos
from shard_tools.annotations.vatex import read_vatex
from shard_tools.annotations.video_files import VideoFiles
from shard_tools.annotations.videos import AnnotatedVideo


def read_annotations(config: ShardsConfig) -> Iterable[AnnotatedVideo]:
    """The videos of a build, in the annotations' order.

    Args:
        config: with absolute paths.

    Raises:
        DataError: annotations or the videos folder are missing or malformed, or no annotated video is there.
        ConfigError: the validation split cannot be held out.
    """
    videos = _read(config)
    if config.validation_videos is not None:
        return hold_out_videos(videos, config.validation_videos, config.validation_seed)
    if config.validation_fraction is not None:
        return hold_out_fraction(videos, config.validation_fraction, config.validation_seed)
    return videos


def _read(config: ShardsConfig) -> Iterable[AnnotatedVideo]:
    if config.format == "folder":
        return read_folder(Path(config.videos), config.default_split)
    if config.format != "table":
        return _read_dataset(config)
    return _rows_of_table(config)


def _rows_of_table(config: ShardsConfig) -> Iterator[AnnotatedVideo]:
    # A table of URLs needs no videos folder.
    is_checked = is_url(config.videos)
    for video in table_rows(Path(str(config.annotations)), config.columns, config.default_split, config.encoding):
        if not is_checked and not is_url(video.path):
            _check_folder(config.videos)
            is_checked = True
        yield video


def _read_dataset(config: ShardsConfig) -> list[AnnotatedVideo]:
    section = config.dataset_section
    assert section is not None
    _check_files(section, config.format)
    _check_folder(config.videos)
    files = VideoFiles(video_files(Path(config.videos)))
    videos = _dispatch(section, files)
    if not any(video.path in files for video in videos):
        there = f"it holds {len(files)} video files, such as {files.example()}" if len(files) else "it holds no video files"
        wanted = f"{len(videos)} annotated videos (such as {videos[0].video_id})" if videos else "annotated videos"
        raise DataError(f"videos folder {config.videos} has none of the {wanted}; {there}")
    return videos


def _dispatch(section: DatasetConfig, files: VideoFiles) -> list[AnnotatedVideo]:
    match section:
        case MsrvttConfig():
            return read_msrvtt(section, files)
        case MsvdConfig():
            return read_msvd(section, files)
        case VatexConfig():
            return read_vatex(section, files)
        case LsmdcConfig():
            return read_lsmdc(section, files)
        case ActivityNetConfig():
            return read_activitynet(section, files)
        case DidemoConfig():
            return read_didemo(section, files)
    raise AssertionError(section)


def _check_files(section: DatasetConfig, name: str) -> None:
    # All of them before any is read: a missing last one should not cost the parsing of the first.
    for key, paths in section.files().items():
        for path in paths:
            if not Path(path).exists():
                read_bytes(AnnotationFile(f"{name}.{key}", Path(path)))


def _check_folder(videos: str) -> None:
    if not Path(videos).is_dir():
        raise DataError(f"videos folder {videos} does not exist; videos=PATH says where it is")
