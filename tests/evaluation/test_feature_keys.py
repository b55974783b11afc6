"""Keys change with what changes the features, and with nothing else; frames and captions apart."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dgl_scale.config import RunConfig
from dgl_scale.data.index import SplitIndex, load_split
from dgl_scale.data.tokenizer import load_tokenizer
from dgl_scale.evaluation.feature_keys import FeatureKeys
from dgl_scale.evaluation.units import Unit
from dgl_scale.model import build_model

UNIT = Unit("anywhere", 0, 2)

Keys = tuple[str, str]


def changed(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    return config.model_copy(update={name: getattr(config, name).model_copy(update=values) for name, values in sections.items()})


@pytest.fixture
def keys_of(tiny_config: RunConfig, tiny_split: Path) -> Callable[..., Keys]:
    """`keys_of(sections of a changed config)`: (frames, captions) of the first unit; `edit(name, tensor)` changes the prompts."""
    index, tokenizer = load_split(tiny_split), functools.cache(load_tokenizer)

    def keys(
        edit: Callable[[str, torch.Tensor], None] = lambda name, tensor: None,
        index: SplitIndex = index,
        unit: Unit = UNIT,
        device: str = "cpu",
        seed: int = 0,
        **sections: dict[str, Any],
    ) -> Keys:
        config = changed(tiny_config, **sections)
        model = build_model(config.model, seed=seed)
        for name, tensor in model.prompts_state().items():
            edit(name, tensor)
        found = FeatureKeys(model, tokenizer(config.model.clip, config.data.max_words), config, device)
        return found.frames(unit, index), found.captions(unit, index)

    return keys


def which_change(one: Keys, other: Keys) -> str:
    return " ".join(name for name, a, b in zip(("frames", "captions"), one, other, strict=True) if a != b)


def test_frames_and_captions_have_keys_of_their_own(keys_of: Callable[..., Keys]) -> None:
    assert len(set(keys_of())) == 2
    assert keys_of() == keys_of()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"evaluation": {"top_k": 3, "block_size": 7, "num_workers": 5, "bootstrap_samples": 9}}, ""),
        ({"optim": {"lr": 1.0}, "data": {"num_workers": 7}}, ""),
        ({"data": {"max_words": 12}}, "captions"),
        ({"model": {"latent_space": None}}, "frames captions"),
        ({"model": {"video_feature": "global_mean"}}, "frames"),
        ({"training": {"precision": "bf16"}}, "frames captions"),
        ({"evaluation": {"cpus_per_worker": 2.0}}, "frames captions"),
        ({"device": "cuda"}, "frames captions"),
        ({"unit": Unit("elsewhere", 0, 2)}, ""),
        ({"unit": Unit("anywhere", 0, 3)}, "frames captions"),
        ({"unit": Unit("anywhere", 2, 4)}, "frames captions"),
        ({"seed": 1}, "frames captions"),
    ],
)
def test_what_changes_a_key(keys_of: Callable[..., Keys], change: dict[str, Any], expected: str) -> None:
    assert which_change(keys_of(), keys_of(**change)) == expected


def test_frames_of_a_frozen_clip_alone_depend_on_their_number(keys_of: Callable[..., Keys]) -> None:
    frozen = {"latent_space": None}
    assert which_change(keys_of(model=frozen), keys_of(model={**frozen, "num_frames": 2})) == "frames"


@pytest.mark.parametrize(
    ("latent_space", "prefix", "expected"),
    [
        ("linear", "global_prompts", "frames"),
        ("linear", "latent_space.prefix", "captions"),
        ("linear", "latent_space.postfix", ""),
        ("linear", "latent_space.table", "frames captions"),
        ("transformer", "latent_space.to_text", "captions"),
        ("transformer", "latent_space.block", "frames captions"),
    ],
)
def test_prompts_change_the_keys_of_the_towers_that_read_them(
    keys_of: Callable[..., Keys], latent_space: str, prefix: str, expected: str
) -> None:
    edited = []

    def edit(name: str, tensor: torch.Tensor) -> None:
        if name.startswith(prefix):
            edited.append(name)
            tensor.view(-1)[-1] += 1

    model = {"latent_space": latent_space}
    assert which_change(keys_of(model=model), keys_of(edit, model=model)) == expected
    assert edited


def test_a_sample_changes_the_key_of_its_unit_only(keys_of: Callable[..., Keys], tiny_split: Path) -> None:
    index = load_split(tiny_split)
    digests = index.sha256.copy()
    digests[1, 5] ^= 1
    other = replace(index, sha256=digests)
    assert which_change(keys_of(), keys_of(index=other)) == "frames captions"
    assert keys_of(unit=Unit("x", 2, 4)) == keys_of(unit=Unit("x", 2, 4), index=other)
