"""What is compared to find leakage: perceptual hashes of a video's stored frames, and its captions without their spelling.

A frame's hash is the sign pattern of its 63 lowest non-constant DCT frequencies against their median, of the
grey picture at 32 x 32 (Zauner, 2010, "pHash"): encoding again, scaling, brightness and small crops flip few of its bits.
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from dgl_scale.data.samples import Sample, decode_tar_range
from dgl_scale.errors import DataError
from dgl_scale.storage.storage import Storage
from dgl_scale.storage.urls import Location, public_url
from shard_tools.failures import Status
from shard_tools.ledger import read_ledger

FRAMES_PER_VIDEO = 8
HASH_BITS = 63
_SIDE = 32
_FREQUENCIES = 8
# A black or plain frame has no pattern; its hash would be that of its noise.
_MIN_CONTRAST = 3.0

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Fingerprints:
    """The samples of one shard, `V` of them.

    Attributes:
        keys: [V].
        content: [V] digests of all frames: equal ones are exact duplicates.
        hashes: [V, 8] perceptual hashes of frames evenly spread over the video; 0 where a frame has no pattern.
        mirrored: [V, 8] those of the same frames, left and right exchanged.
        captions: [C] digests of normalised captions.
        caption_video: [C] which sample each belongs to.
    """

    keys: list[str]
    content: Hashes
    hashes: Hashes
    mirrored: Hashes
    captions: Hashes
    caption_video: npt.NDArray[np.int64]


def shard_fingerprints(shard: Location) -> Fingerprints:
    """Read the samples of a shard, named without suffix.

    Raises:
        DataError: the shard or its Parquet is damaged.
        StorageError: the server cannot be reached or refuses.
    """
    keys: list[str] = []
    content, hashes, captions, caption_video = [], [], [], []
    for sample in _samples(shard):
        captions += [_digest(normalise_caption(caption).encode()) for caption in sample.metadata.captions]
        caption_video += [len(keys)] * len(sample.metadata.captions)
        keys.append(sample.key)
        content.append(_digest(*sample.frames))
        try:
            hashes.append([frame_hashes(frame) for frame in _spread(sample.frames)])
        except ValueError as error:
            where = f"sample {sample.key} of {public_url(shard)}.tar"
            raise DataError(f"{where} has a damaged frame ({error}); `dgl-scale shards verify` says more") from error
    both = np.array(hashes, dtype=np.uint64).reshape(len(keys), FRAMES_PER_VIDEO, 2)
    return Fingerprints(
        keys=keys,
        content=np.array(content, dtype=np.uint64),
        hashes=both[..., 0],
        mirrored=both[..., 1],
        captions=np.array(captions, dtype=np.uint64),
        caption_video=np.array(caption_video, dtype=np.int64),
    )


def _samples(shard: Location) -> Iterator[Sample]:
    storage = Storage()
    rows = read_ledger(f"{shard}.parquet", storage).rows
    try:
        with storage.local_copy(f"{shard}.tar") as path, open(path, "rb") as stream:
            for row in rows:
                if row.status is Status.OK:
                    stream.seek(row.offset or 0)
                    yield decode_tar_range(stream.read(row.size or 0))
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"shard {public_url(shard)}.tar cannot be read: {reason}; build the shards again to restore it") from error


def frame_hashes(jpeg: bytes) -> tuple[int, int]:
    """The perceptual hash of a frame and of its mirror image; 0 for a frame without a pattern.

    Raises:
        ValueError: it is no JPEG.
    """
    # The decoder scales by whole factors for nothing; what is left is averaged.
    grey = simplejpeg.decode_jpeg(jpeg, "GRAY", min_height=2 * _SIDE, min_width=2 * _SIDE, min_factor=2)[..., 0]
    small = np.asarray(Image.fromarray(grey).resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float64)
    if small.std() < _MIN_CONTRAST:
        return 0, 0
    frequencies = _DCT @ small @ _DCT.T  # [vertical, horizontal]
    # The mirror image has the odd horizontal frequencies with the other sign.
    return _bits(frequencies), _bits(frequencies * np.where(np.arange(_FREQUENCIES) % 2, -1, 1))


def normalise_caption(caption: str) -> str:
    """A caption without case, punctuation and repeated white space."""
    folded = unicodedata.normalize("NFKC", caption).casefold()
    # Punctuation inside a word goes ("don't"), between words it parts them.
    words = "".join(letter if letter.isalnum() or unicodedata.category(letter)[0] == "M" else _separator(letter) for letter in folded)
    return " ".join(words.split())


def _separator(letter: str) -> str:
    return "" if letter in "'’" else " "


def _bits(frequencies: np.ndarray) -> int:
    patterns = frequencies.ravel()[1:]
    return int.from_bytes(np.packbits(np.append(patterns > np.median(patterns), True)).tobytes(), "big")


def _spread(frames: Sequence[bytes]) -> list[bytes]:
    return [frames[(2 * place + 1) * len(frames) // (2 * FRAMES_PER_VIDEO)] for place in range(FRAMES_PER_VIDEO)]


def _digest(*parts: bytes) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "big")


def _dct_rows() -> np.ndarray:
    """[8, 32]: the lowest frequencies of an orthonormal DCT-II."""
    frequency, place = np.arange(_FREQUENCIES)[:, None], np.arange(_SIDE)[None]
    rows = np.cos(np.pi * frequency * (2 * place + 1) / (2 * _SIDE)) * np.sqrt(2 / _SIDE)
    rows[0] /= np.sqrt(2)
    return np.asarray(rows)


_DCT = _dct_rows()
