"""Samples of foreign WebDataset shards: frames and captions out of the members that are customary."""

import json
from collections.abc import Mapping
from typing import Any

from dgl_scale.errors import DataError

_FRAMES = (".jpg", ".jpeg")
_VIDEOS = {"mp4", "avi", "mkv", "mov", "webm"}
_CAPTION_KEYS = ("captions", "caption", "text", "txt")


def read_sample(members: Mapping[str, bytes]) -> tuple[list[bytes], list[str]]:
    """JPEG frames, in the order of their names, and captions of a sample as WebDataset groups it.

    Frames are the members `jpg` or `jpeg`, or any `<name>.jpg`. Captions are `txt`, the whole text being one, or in `json` the
    first of `captions`, `caption`, `text`, `txt` (a text or a list of them).

    Args:
        members: extension to content.

    Raises:
        DataError: no frames or no caption.
    """
    frames = [content for name, content in sorted(members.items()) if f".{name}".endswith(_FRAMES)]
    if not frames:
        video = next(iter(_VIDEOS & members.keys()), None)
        if video:
            raise DataError(f"it holds a video ({video}) and no frames; build shards of frames from the videos (docs/shards.md)")
        raise DataError(f"it has no frames (.jpg), only {', '.join(sorted(members)) or 'nothing'}")
    captions = [caption.strip() for caption in _captions(members)]
    captions = [caption for caption in captions if caption]
    if not captions:
        raise DataError(f"it has no caption: no txt, and no {', '.join(_CAPTION_KEYS)} in json")
    return frames, captions


def _captions(members: Mapping[str, bytes]) -> list[str]:
    try:
        if "txt" in members:
            return [members["txt"].decode()]
        content = json.loads(members.get("json", b"{}"))
    except ValueError as error:
        raise DataError(f"its captions cannot be read: {error}") from error
    if not isinstance(content, dict):
        return []
    found: Any = next((content[key] for key in _CAPTION_KEYS if content.get(key)), [])
    return [text for text in (found if isinstance(found, list) else [found]) if isinstance(text, str)]
