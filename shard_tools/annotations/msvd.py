"""MSVD (YouTube2Text): 1,970 clips with about 40 captions each.

    raw-captions.pkl            {"-4wsuPCjDBc_5_15": [["a", "squirrel", "is", "eating"], ...], ...}
    AllVideoDescriptions.txt    the publisher's own: "-4wsuPCjDBc_5_15 a squirrel is eating", comments begin with #
    train_list.txt, val_list.txt, test_list.txt     a clip name a line
    youtube_mapping.txt         "-4wsuPCjDBc_5_15 vid1": file names of some copies

A clip name is `<YouTube id>_<start>_<end>`; the published files are cut already.
"""

from pathlib import Path
from typing import Any

from dgl_scale.dataset_config import MsvdConfig
from dgl_scale.errors import DataError
from shard_tools.annotations.annotation_files import AnnotationFile, check_disjoint, check_known, read_ids, read_text
from shard_tools.annotations.plain_pickle import read_plain_pickle
from shard_tools.annotations.video_files import VideoFiles
from shard_tools.annotations.videos import AnnotatedVideo, describe_video


def read_msvd(config: MsvdConfig, files: VideoFiles) -> list[AnnotatedVideo]:
    """The videos of the listed splits, in the order of their lists; words of a pickled caption are joined by spaces.

    Raises:
        DataError: a file is missing or malformed (a pickle with code in it too), or a video is in two splits.
    """
    source = AnnotationFile("msvd.captions", Path(config.captions))
    captions = _pickled(source) if source.path.suffix.lower() in {".pkl", ".pickle"} else _descriptions(source)
    file_names = _mapping(AnnotationFile("msvd.mapping", Path(config.mapping))) if config.mapping else {}
    splits = {}
    for split in config.split_keys:
        if path := config.files().get(split):
            file = AnnotationFile(f"msvd.{split}", Path(path[0]))
            splits[split] = read_ids(file)
            check_known(splits[split], captions, file, "msvd.captions")
    check_disjoint(splits)
    return [
        describe_video(
            name,
            files.find(name, file_names.get(name, name)),
            captions.get(name),
            split,
            extra={"source_video": name.rsplit("_", 2)[0]},
        )
        for split, names in splits.items()
        for name in names
    ]


def _pickled(file: AnnotationFile) -> dict[str, list[Any]]:
    value = read_plain_pickle(file)
    if not isinstance(value, dict) or not all(isinstance(name, str) and isinstance(texts, list) for name, texts in value.items()):
        raise DataError(f"{file} must hold a dict of clip names to lists of captions, as raw-captions.pkl does")
    return {name: [_sentence(text) for text in texts] for name, texts in value.items()}


def _sentence(words: Any) -> Any:
    is_tokens = isinstance(words, list | tuple) and all(isinstance(word, str) for word in words)
    return " ".join(words) if is_tokens else words


def _descriptions(file: AnnotationFile) -> dict[str, list[Any]]:
    captions: dict[str, list[Any]] = {}
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, text = line.strip().partition(" ")
        if not separator:
            raise DataError(f"{file}: line {number} has no caption after the clip name: {line[:100]!r}")
        captions.setdefault(name, []).append(text)
    return captions


def _mapping(file: AnnotationFile) -> dict[str, str]:
    names: dict[str, str] = {}
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        cells = line.split()
        if len(cells) not in {0, 2}:
            raise DataError(f"{file}: line {number} must be a clip name and a file name, got {line[:100]!r}")
        if cells:
            names[cells[0]] = cells[1]
    return names
