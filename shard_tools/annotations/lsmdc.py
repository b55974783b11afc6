"""LSMDC, the 2016 edition: movie clips with one sentence each.

    LSMDC16_annos_training.csv, LSMDC16_annos_val.csv, LSMDC16_challenge_1000_publictect.csv: no header, tabs between
        clip id, start aligned, end aligned, start extracted, end extracted, sentence

Quotation marks mean nothing there. A clip id holds dots (`0001_American_Beauty_00.00.51.926-00.00.54.129`)
and may occur on several lines, each a caption. The times are the movie's: the published files are cut already.
"""

from pathlib import Path

from dgl_scale.dataset_config import LsmdcConfig
from dgl_scale.errors import DataError
from shard_tools.annotations.annotation_files import AnnotationFile, check_disjoint, read_text
from shard_tools.annotations.video_files import VideoFiles
from shard_tools.annotations.videos import AnnotatedVideo, describe_video

_NUM_COLUMNS = 6


def read_lsmdc(config: LsmdcConfig, files: VideoFiles) -> list[AnnotatedVideo]:
    """The clips of all splits that the config names, in the order of their files.

    Raises:
        DataError: a file is missing, a line has other than six columns, or a clip is in two splits.
    """
    splits = {split: _read_captions(AnnotationFile(f"lsmdc.{split}", Path(path[0]))) for split, path in config.files().items()}
    check_disjoint(splits)
    return [
        describe_video(name, files.find(name), texts, split, extra={"source_video": name.rpartition("_")[0] or name})
        for split, members in splits.items()
        for name, texts in members.items()
    ]


def _read_captions(file: AnnotationFile) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    # Only line feeds end a line: sentences may hold other characters that splitlines() cuts at.
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        cells = line.rstrip("\r").split("\t")
        if len(cells) != _NUM_COLUMNS or not cells[0].strip():
            raise DataError(
                f"{file}: line {number} has {len(cells)} columns between tabs instead of {_NUM_COLUMNS}"
                f" (clip id, four times, sentence): {line[:100]!r}"
            )
        captions.setdefault(cells[0].strip(), []).append(cells[-1])
    return captions
