"""Features of splits: out of the store what it has, the rest from the workers, and into the store."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dgl_scale.config import RunConfig
from dgl_scale.data.index import SplitIndex
from dgl_scale.data.tokenizer import Tokenizer
from dgl_scale.evaluation.embedding import Annotations
from dgl_scale.evaluation.feature_keys import FeatureKeys, prompts_digest
from dgl_scale.evaluation.feature_store import Entry, FeatureStore
from dgl_scale.evaluation.features import Features, join_features
from dgl_scale.evaluation.pairwise import InProcess, Pairwise
from dgl_scale.evaluation.ranking_tasks import is_worth_tasks
from dgl_scale.evaluation.units import EncodedCaptions, EncodedUnit, Unit, check_split, check_unit, split_units
from dgl_scale.evaluation.workers import WorkerJob, Workers
from dgl_scale.model.frozen_clip import EvaluatedModel

Progress = Callable[[int, int], None]
"""Called with (videos done, videos in all), of each split at the start too."""

_BYTES_PER_GIB = 1 << 30


@dataclass(frozen=True)
class EncodedSplit:
    """All features of a split.

    Attributes:
        units: in order.
        index: of the split.
        encoded: how many videos' frames, and how many videos' captions, were encoded now and not found in the store.
    """

    units: Sequence[EncodedUnit]
    index: SplitIndex
    encoded: tuple[int, int]

    def features(self, scale: float) -> Features:
        """As one; `scale` is the model's factor on cosines. DataError as `join_features`."""
        parts = []
        for one in self.units:
            assert one.video is not None and one.captions is not None, "of this split only one half was encoded"
            keys = tuple(map(str, self.index.keys[one.unit.start : one.unit.stop]))
            captions = one.captions
            parts.append(Features(one.video, captions.features, captions.video_index, captions.tokens, keys, scale))
        return join_features(parts)

    def caption_features(self) -> Tensor:
        """Float32 `[Q, E]`, of all captions."""
        return torch.cat([one.captions.features for one in self.units if one.captions is not None])

    def annotations(self) -> Annotations:
        """What the samples say of themselves, as `read_annotations` gives it."""
        keys = self.index.keys
        key_of = {str(video_id): str(key) for video_id, key in zip(self.index.video_ids, keys, strict=True)}
        captions: dict[str, list[str]] = {str(key): [] for key in keys}
        twins = {}
        for one in self.units:
            assert one.captions is not None
            for video, text in zip(one.captions.video_index.tolist(), one.captions.texts, strict=True):
                captions[str(keys[one.unit.start + video])].append(text)
            for video, twin in enumerate(one.captions.twins):
                if twin in key_of:
                    twins[str(keys[one.unit.start + video])] = key_of[twin]
        return Annotations(captions, twins)


class SplitEncoder:
    """Encodes splits with one set of workers, for one model after the other; `close` ends them.

    Args:
        config: with a resolved precision.
        frozen: whether the model is a CLIP without prompts.
        device: `cpu` or `cuda`, where the workers encode.
    """

    def __init__(self, config: RunConfig, tokenizer: Tokenizer, *, frozen: bool, device: str, progress: Progress) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._device = device
        self._progress = progress
        self._workers = Workers(WorkerJob(config, frozen, device))
        evaluation = config.evaluation
        folder = (
            None if evaluation.feature_store is None else Path(config.output).expanduser() / Path(evaluation.feature_store).expanduser()
        )
        self._store = None if folder is None else FeatureStore(folder, int(evaluation.feature_store_gib * _BYTES_PER_GIB))

    def close(self) -> None:
        """End the workers."""
        self._workers.close()

    def encode(
        self, model: EvaluatedModel, index: SplitIndex, split: str, *, frames: bool = True, max_captions: int | None = None
    ) -> EncodedSplit:
        """The features of a split under a model; its prompts go to the workers.

        Args:
            index: of the split.
            split: its folder or address, as the workers find it.
            frames: False: captions only.
            max_captions: enough units, at even distances, for so many captions; None: all units.

        Raises:
            DataError: a sample cannot be read, has no caption, or gets a feature that is not finite.
            ConfigError, DglError: as `Workers.encode`.
        """
        check_split(index)
        keys = FeatureKeys(model, self._tokenizer, self._config, self._device)
        wanted = split_units(split, index.num_videos, self._config.evaluation.batch_size, frames=frames)
        if max_captions is not None and max_captions < index.total_captions:
            count = math.ceil(len(wanted) * max_captions / index.total_captions)
            wanted = [wanted[i * len(wanted) // count] for i in range(count)]
        done = {unit.start: self._find(unit, index, keys) for unit in wanted}
        missing = [rest for unit in wanted if (rest := _rest(unit, done[unit.start])) is not None]
        self._encode_missing(missing, done, model, index, keys)
        if self._store is not None and missing:
            self._store.trim()
        encoded = tuple(sum(unit.stop - unit.start for unit in missing if getattr(unit, half)) for half in ("frames", "captions"))
        return EncodedSplit([done[unit.start] for unit in wanted], index, (encoded[0], encoded[1]))

    def pairwise(self, num_texts: int, num_videos: int) -> Pairwise:
        """What ranks so many captions and videos until the next `encode`: the workers where that pays. Raises as `Workers.pairwise`."""
        evaluation = self._config.evaluation
        is_large = is_worth_tasks(num_texts, num_videos, evaluation)
        return self._workers.pairwise() if is_large else InProcess(evaluation.block_size)

    def _encode_missing(
        self, missing: Sequence[Unit], done: dict[int, EncodedUnit], model: EvaluatedModel, index: SplitIndex, keys: FeatureKeys
    ) -> None:
        total = sum(one.unit.stop - one.unit.start for one in done.values())
        left = sum(unit.stop - unit.start for unit in missing)
        self._progress(total - left, total)
        for encoded in self._workers.encode(missing, prompts_digest(model), model.prompts_state()):
            unit = encoded.unit
            check_unit(encoded, index.keys[unit.start : unit.stop].tolist())
            self._keep(encoded, index, keys)
            found = done[unit.start]
            done[unit.start] = EncodedUnit(
                found.unit, encoded.video if unit.frames else found.video, encoded.captions if unit.captions else found.captions
            )
            left -= unit.stop - unit.start
            self._progress(total - left, total)

    def _find(self, unit: Unit, index: SplitIndex, keys: FeatureKeys) -> EncodedUnit:
        """What the store has of a unit."""
        if self._store is None:
            return EncodedUnit(unit, None, None)
        frames = self._store.read(keys.frames(unit, index)) if unit.frames else None
        captions = self._store.read(keys.captions(unit, index)) if unit.captions else None
        return EncodedUnit(
            unit,
            None if frames is None else frames.tensors["features"],
            None if captions is None else _captions_of(captions),
        )

    def _keep(self, encoded: EncodedUnit, index: SplitIndex, keys: FeatureKeys) -> None:
        if self._store is None:
            return
        if encoded.video is not None:
            self._store.write(keys.frames(encoded.unit, index), Entry({"features": encoded.video}, {}))
        if (captions := encoded.captions) is not None:
            self._store.write(keys.captions(encoded.unit, index), _entry_of(captions))


def _entry_of(captions: EncodedCaptions) -> Entry:
    tensors = {"features": captions.features, "tokens": captions.tokens, "video_index": captions.video_index}
    return Entry(tensors, {"texts": captions.texts, "twins": captions.twins})


def _captions_of(entry: Entry) -> EncodedCaptions:
    tensors, notes = entry.tensors, entry.notes
    return EncodedCaptions(tensors["features"], tensors["tokens"], tensors["video_index"], notes["texts"], notes["twins"])


def _rest(unit: Unit, found: EncodedUnit) -> Unit | None:
    """What of a unit is still to be encoded."""
    rest = replace(unit, frames=unit.frames and found.video is None, captions=unit.captions and found.captions is None)
    return rest if rest.frames or rest.captions else None
