"""Units cover a split at fixed boundaries, give the features of the split, and refuse what cannot be measured."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dgl_scale.config import RunConfig
from dgl_scale.data.index import load_split
from dgl_scale.data.reader import SampleReader
from dgl_scale.data.tokenizer import load_tokenizer
from dgl_scale.errors import DataError
from dgl_scale.evaluation.embedding import encode_split, load_model, read_annotations
from dgl_scale.evaluation.encoding import EncodedSplit
from dgl_scale.evaluation.features import join_features
from dgl_scale.evaluation.units import EncodedCaptions, EncodedUnit, Unit, check_split, check_unit, encode_unit, read_unit, split_units

CPU = torch.device("cpu")


@given(st.integers(0, 200), st.integers(1, 50))
def test_units_cover_a_split_in_whole_batches(num_videos: int, batch_size: int) -> None:
    units = split_units("x", num_videos, batch_size)
    assert [i for unit in units for i in range(unit.start, unit.stop)] == list(range(num_videos))
    assert all(unit.start % batch_size == 0 and unit.stop - unit.start <= batch_size for unit in units)


def test_units_give_the_features_of_the_split(tiny_config: RunConfig, tiny_split: Path) -> None:
    index, model = load_split(tiny_split), load_model(tiny_config, None, CPU)
    tokenizer, reader = load_tokenizer(tiny_config.model.clip, tiny_config.data.max_words), SampleReader(index)
    encoded = []
    for unit in split_units(str(tiny_split), index.num_videos, 2):
        read = read_unit(unit, index, reader, model.image_size, 3, pin_memory=False)
        encoded.append(encode_unit(model, tokenizer, read, batch_size=2, dtype=torch.float32, device=CPU))
    whole = join_features([encode_split(model, index, tokenizer, start=0, stop=index.num_videos, config=tiny_config, device=CPU)])
    split = EncodedSplit(encoded, index, (0, 0))
    features = split.features(whole.scale)
    for name in ("video", "text", "video_index", "tokens"):
        assert torch.equal(getattr(features, name), getattr(whole, name)), name
    assert (features.keys, features.scale) == (whole.keys, whole.scale)
    assert split.annotations() == read_annotations(index, whole.keys)


def test_only_the_wanted_half_is_read_and_encoded(tiny_config: RunConfig, tiny_split: Path) -> None:
    index, model = load_split(tiny_split), load_model(tiny_config, None, CPU)
    tokenizer, reader = load_tokenizer(tiny_config.model.clip, tiny_config.data.max_words), SampleReader(index)
    for frames in (True, False):
        unit = Unit(str(tiny_split), 2, 4, frames=frames, captions=not frames)
        read = read_unit(unit, index, reader, model.image_size, 3, pin_memory=False)
        one = encode_unit(model, tokenizer, read, batch_size=2, dtype=torch.float32, device=CPU)
        assert (read.frames is not None, one.video is not None, one.captions is None) == (frames, frames, frames)


def test_a_split_without_captions_or_with_a_doubled_key_is_refused(tiny_split: Path) -> None:
    index = load_split(tiny_split)
    check_split(index)
    captions = index.num_captions.copy()
    captions[3:5] = 0
    with pytest.raises(DataError, match=r"sample clip_03 of .* has no caption \(2 of 11 have none\)"):
        check_split(replace(index, num_captions=captions))
    keys = index.keys.copy()
    keys[7] = keys[2]
    with pytest.raises(DataError, match="sample key clip_02 occurs 2 times"):
        check_split(replace(index, keys=keys))


def test_features_that_are_not_finite_name_their_sample() -> None:
    unit = Unit("x", 0, 2)
    video = torch.ones(2, 3)
    captions = EncodedCaptions(
        torch.ones(3, 3), torch.ones(3, 4, dtype=torch.int64), torch.tensor([0, 1, 1]), ["a", "b", "c"], [None, None]
    )
    check_unit(EncodedUnit(unit, video, captions), ["one", "two"])
    with pytest.raises(DataError, match="video feature of two is not finite"):
        check_unit(EncodedUnit(unit, torch.tensor([[1.0], [np.nan]]), None), ["one", "two"])
    captions.features[2, 0] = torch.inf
    with pytest.raises(DataError, match="text feature of a caption of two is not finite"):
        check_unit(EncodedUnit(unit, None, captions), ["one", "two"])
