"""QB-Norm's figures for a split: training captions as the bank, β by the validation split. Encodes what is missing."""

from typing import Any

from dgl_scale.config import QueryBankConfig, RunConfig
from dgl_scale.errors import ConfigError
from dgl_scale.evaluation.encoding import SplitEncoder
from dgl_scale.evaluation.features import Features
from dgl_scale.evaluation.pairwise import labelled
from dgl_scale.evaluation.rescoring import bank_rows, qb_norm_figures
from dgl_scale.evaluation.splits import absolute, open_split
from dgl_scale.model.frozen_clip import EvaluatedModel


def check_query_bank(config: RunConfig) -> None:
    """Refuse QB-Norm without what it needs, before anything is encoded.

    Raises:
        ConfigError: no training split, or several β and no validation split.
    """
    bank = config.evaluation.qb_norm
    if bank is not None and config.data.train is None:
        raise ConfigError("evaluation.qb_norm needs data.train, whose captions are the bank; set it, or qb_norm to null")
    if bank is not None and len(bank.betas) > 1 and config.data.validation is None:
        raise ConfigError("evaluation.qb_norm.betas names several and data.validation, to choose by, is missing; set it, or one beta")


def query_bank_figures(
    encoder: SplitEncoder, model: EvaluatedModel, config: RunConfig, bank: QueryBankConfig, test: Features
) -> dict[str, Any]:
    """`rerank.qb_norm` of a results.json.

    Args:
        config: checked by `check_query_bank`.
        test: features of what is evaluated, by the same model.

    Raises:
        DataError, DglError: as `SplitEncoder.encode`.
    """
    train = absolute(str(config.data.train))
    captions = encoder.encode(model, open_split(config, train), train, frames=False, max_captions=bank.max_bank).caption_features()
    captions = captions[list(bank_rows(len(captions), bank.max_bank))]
    validation = None
    if len(bank.betas) > 1:
        split = absolute(str(config.data.validation))
        validation = labelled(encoder.encode(model, open_split(config, split), split).features(test.scale))
    pairwise = encoder.pairwise(max(len(test.text), len(captions)), len(test.keys))
    return qb_norm_figures(labelled(test), captions, validation, bank, scale=test.scale, pairwise=pairwise)
