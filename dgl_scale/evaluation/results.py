"""The folder of one evaluation: results.json, ranks.parquet and TensorBoard, whole or absent.

runs/<name>/evaluation/<step-00001000 | file name | frozen>-<split>/
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor

from dgl_scale.errors import CheckpointError, DataError
from dgl_scale.evaluation.attention_picture import AttentionExample, write_examples
from dgl_scale.evaluation.embedding import Annotations
from dgl_scale.evaluation.features import Features
from dgl_scale.evaluation.ranks import DirectionRanks
from dgl_scale.evaluation.retrieval import DIRECTIONS, Retrieval, flat_metrics
from dgl_scale.files import read_json, replaced_folder, write_json
from dgl_scale.run_folder import PROMPTS, checkpoint_step, find_prompts, read_pointer
from dgl_scale.telemetry import MetricsWriter

RESULTS = "results.json"
RANKS = "ranks.parquet"
FROZEN = "frozen"


@dataclass(frozen=True)
class Checkpoint:
    """What is evaluated.

    Attributes:
        name: of the results' folder.
        prompts: the prompts file, None for the frozen CLIP.
        step: optimizer steps, where known.
        selection: how this checkpoint was chosen, for the reader of the results.
        chosen_by_validation: whether the validation split decided.
        address: what the results call the checkpoint, where `prompts` is a copy of it; null: the path of `prompts`.
    """

    name: str
    prompts: Path | None
    step: int | None
    selection: str
    chosen_by_validation: bool = False
    address: str | None = None


def resolve_checkpoint(argument: str) -> Checkpoint:
    """What `--checkpoint` means: `none`, a run folder, a checkpoint folder or a prompts file.

    Raises:
        CheckpointError: nothing of that kind is there, or it is damaged.
    """
    if argument == "none":
        return Checkpoint(FROZEN, None, None, "frozen CLIP, nothing was trained or chosen")
    # Absolute, since a worker may run in another folder.
    prompts = find_prompts(argument).resolve()
    try:
        step: int | None = checkpoint_step(prompts.parent)
    except CheckpointError:
        step = None
    name = prompts.stem if step is None else prompts.parent.name
    given = Path(argument).expanduser()
    if given.is_file() or (given / PROMPTS).exists():
        return Checkpoint(name, prompts, step, "given by name")
    best = read_pointer(given, "best")
    return Checkpoint(name, prompts, step, chosen_by(best), chosen_by_validation=best is not None)


def chosen_by(best: Mapping[str, Any] | None) -> str:
    """How a run's checkpoint was chosen, given what its `best` says."""
    return "the newest complete checkpoint of the run" if best is None else f"highest {best['metric']} of the run ({best['value']:.2f})"


def evaluation_folder(run_folder: Path, name: str, split: str) -> Path:
    """Where the results of a checkpoint (by its name) on a split go."""
    return run_folder / "evaluation" / f"{name}-{split}"


def write_results(
    folder: Path,
    results: dict[str, Any],
    retrieval: Retrieval,
    features: Features,
    annotations: Annotations,
    *,
    step: int | None,
    attention: Sequence[AttentionExample] = (),
) -> None:
    """Write an evaluation folder in one piece; an earlier one of the same name is replaced.

    Args:
        results: the content of results.json; all numbers finite.
        step: of the TensorBoard scalars; None writes none.
        attention: clips with what the model looks at, for the report.

    Raises:
        DglError: the folder cannot be written; an earlier one is then still there.
    """
    with replaced_folder(folder) as temporary:
        write_json(temporary / RESULTS, results)
        pyarrow.parquet.write_table(ranks_table(retrieval, features, annotations), temporary / RANKS)
        if attention:
            write_examples(temporary, attention)
        if step is not None:
            writer = MetricsWriter(temporary, 0)
            writer.record(step, {f"{results['split']}/{name}": value for name, value in flat_metrics(retrieval.ranking).items()})
            writer.close()


def read_results(folder: Path) -> dict[str, Any]:
    """The results.json of an evaluation folder.

    Raises:
        DataError: it is missing or no results.
    """
    results = read_json(folder / RESULTS)
    if not isinstance(results, dict) or not all(name in results for name in DIRECTIONS):
        raise DataError(f"{folder / RESULTS} holds no evaluation results; evaluate again")
    return results


def ranks_table(retrieval: Retrieval, features: Features, annotations: Annotations) -> pyarrow.Table:
    """A row per query, text-to-video first.

    Columns: `direction`; `key`, the video of the query; `caption` (of a video-to-text query: null); `rank`; `score` of the
    right candidate; `top_keys` and, for video-to-text, `top_captions`; `top_scores`, best first.
    """
    captions = flat_captions(features, annotations)
    owners = [features.keys[v] for v in features.video_index.tolist()]
    to_video = _direction_columns(DIRECTIONS[0], retrieval.ranking.text_to_video, owners, list(features.keys), captions, None)
    to_text = _direction_columns(DIRECTIONS[1], retrieval.ranking.video_to_text, list(features.keys), owners, None, captions)
    return pyarrow.concat_tables([pyarrow.table(to_video, schema=_SCHEMA), pyarrow.table(to_text, schema=_SCHEMA)])


def read_ranks(folder: Path, direction: str) -> list[dict[str, Any]]:
    """The rows of one direction of an evaluation folder's ranks.parquet.

    Raises:
        DataError: it is missing or not as `ranks_table` writes it.
    """
    try:
        table = pyarrow.parquet.read_table(folder / RANKS, schema=_SCHEMA, filters=[("direction", "=", direction)])
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {folder / RANKS}: {str(error).splitlines()[0]}; evaluate again") from error
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def flat_captions(features: Features, annotations: Annotations) -> list[str]:
    """The caption of each of the `Q` queries.

    Raises:
        DataError: a video was encoded with another number of captions than its sample has.
    """
    seen = torch.bincount(features.video_index, minlength=len(features.keys)).tolist()
    for key, count in zip(features.keys, seen, strict=True):
        if len(annotations.captions[key]) != count:
            raise DataError(f"sample {key} has {len(annotations.captions[key])} captions but {count} were encoded; build its shard again")
    order = [caption for key in features.keys for caption in annotations.captions[key]]
    assert bool((features.video_index.diff() >= 0).all()), "captions are not in the order of their videos"
    return order


_SCHEMA = pyarrow.schema(
    [
        ("direction", pyarrow.string()),
        ("key", pyarrow.string()),
        ("caption", pyarrow.string()),
        ("rank", pyarrow.float64()),
        ("score", pyarrow.float64()),
        ("top_keys", pyarrow.list_(pyarrow.string())),
        ("top_captions", pyarrow.list_(pyarrow.string())),
        ("top_scores", pyarrow.list_(pyarrow.float64())),
    ]
)


def _direction_columns(
    name: str,
    ranks: DirectionRanks,
    keys: list[str],
    candidates: list[str],
    captions: list[str] | None,
    candidate_captions: list[str] | None,
) -> dict[str, Sequence[Any]]:
    return {
        "direction": [name] * len(keys),
        "key": keys,
        "caption": captions if captions is not None else [None] * len(keys),
        "rank": ranks.ranks.tolist(),
        "score": ranks.scores.tolist(),
        "top_keys": _pick(candidates, ranks.top_indices),
        "top_captions": [None] * len(keys) if candidate_captions is None else _pick(candidate_captions, ranks.top_indices),
        "top_scores": ranks.top_scores.tolist(),
    }


def _pick(values: list[str], indices: Tensor) -> list[list[str]]:
    return [[values[i] for i in row] for row in indices.tolist()]
