"""What results say of their model: trained on what, transferred or not, chosen how."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dgl_scale.config import RunConfig
from dgl_scale.data.index import SplitIndex, load_split
from dgl_scale.evaluation.provenance import selection, training_facts
from dgl_scale.evaluation.results import Checkpoint
from dgl_scale.model import build_model, save_prompts

FROZEN = Checkpoint("frozen", None, None, "nothing was chosen")


@pytest.fixture
def index(tiny_split: Path) -> SplitIndex:
    return load_split(tiny_split)


def with_data(config: RunConfig, **values: Any) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update=values)})


def trained(config: RunConfig, tmp_path: Path, **card: Any) -> Checkpoint:
    save_prompts(build_model(config.model, seed=0), tmp_path / "prompts.safetensors", card)
    return Checkpoint("mine", tmp_path / "prompts.safetensors", 7, "highest of the run", chosen_by_validation=True)


@pytest.mark.parametrize(("dataset", "transfer"), [("tiny", False), ("msrvtt", True)])
def test_prompts_say_what_they_were_trained_on(
    tiny_config: RunConfig, tmp_path: Path, index: SplitIndex, dataset: str, transfer: bool
) -> None:
    card = {"run": "one", "dataset": dataset, "shards": "12ab", "step": 7}
    facts = training_facts(tiny_config, trained(tiny_config, tmp_path, **card, more="left out"), index)
    assert facts == {"dataset": "tiny", "trained_on": card, "transfer": transfer}


def test_prompts_that_do_not_name_their_dataset_are_known_by_its_digest(
    tiny_config: RunConfig, tmp_path: Path, index: SplitIndex, tiny_split: Path
) -> None:
    config = with_data(tiny_config, train=str(tiny_split))
    known = training_facts(config, trained(config, tmp_path, shards=index.digest), index)
    assert (known["trained_on"]["dataset"], known["transfer"]) == ("tiny", False)
    for other in (config, with_data(config, train=str(tmp_path / "absent")), tiny_config):
        unknown = training_facts(other, trained(config, tmp_path, shards="other"), index)
        assert (unknown["trained_on"]["dataset"], unknown["transfer"]) == (None, None)


def test_a_frozen_clip_transfers_nothing(tiny_config: RunConfig, index: SplitIndex) -> None:
    assert training_facts(tiny_config, FROZEN, index) == {"dataset": "tiny", "trained_on": None, "transfer": None}


def test_a_choice_on_what_is_evaluated_is_said(tiny_config: RunConfig, tmp_path: Path) -> None:
    chosen = trained(tiny_config, tmp_path)
    assert selection(tiny_config, chosen) == "highest of the run"
    same = with_data(tiny_config, validation=tiny_config.data.test)
    assert selection(same, chosen) == "highest of the run; chosen on the split evaluated here, so the figures are optimistic"
    assert selection(same, replace(chosen, chosen_by_validation=False)) == "highest of the run"
