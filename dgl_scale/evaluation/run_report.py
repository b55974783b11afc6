"""A report from run folders: their evaluations, their metrics.jsonl and the shards they were evaluated on."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dgl_scale.data.index import SplitIndex, load_split
from dgl_scale.data.reader import SampleReader
from dgl_scale.errors import DataError
from dgl_scale.evaluation.attention_picture import read_examples
from dgl_scale.evaluation.charts import Curve, Series
from dgl_scale.evaluation.film_strip import film_strip
from dgl_scale.evaluation.report import Candidate, QueryExample, Report, report_row, summarise, write_report
from dgl_scale.evaluation.results import FROZEN, RESULTS, read_ranks, read_results
from dgl_scale.files import read_json
from dgl_scale.storage.clients import StorageError
from dgl_scale.storage.urls import is_url
from dgl_scale.telemetry import read_metrics

NUM_EXAMPLES = 12
_CLIPS_PER_EXAMPLE = 5
_NAMES = {None: "Frozen CLIP", "linear": "DGL-Linear", "transformer": "DGL-Transformer"}
_COVERAGE = ("annotated", "found", "missing", "failed", "extra")


def report_run(run_folder: Path, output: Path) -> None:
    """Write the report of one run: its evaluations, the frozen baseline first where it was evaluated.

    Raises:
        DataError: the folder holds no evaluation, or a damaged one.
    """
    folders = evaluation_folders(run_folder)
    evaluations = [read_results(folder) for folder in folders]
    # The newest evaluation of trained prompts has its queries shown; of a baseline only where there is no other.
    shown = max(range(len(folders)), key=lambda i: (evaluations[i]["trained_parameters"] > 0, (folders[i] / RESULTS).stat().st_mtime))
    rows = [report_row(_row_name(results, run_folder.name), results) for results in evaluations]
    results = evaluations[shown]
    examples, rule = _shown_examples(folders[shown], results, rows[shown].name)
    write_report(
        output,
        Report(
            title=f"Text-video retrieval: {run_folder.name}",
            summary=summarise(rows, results["queries"]),
            split=f"{results['queries']:,} captions of {results['videos']:,} videos, split {results['split']}",
            rows=rows,
            curves=run_curves({run_folder.name: run_folder}),
            examples=examples,
            examples_rule=rule,
            attention=read_examples(folders[shown]),
            commands=[shlex.join(["python", *evaluation["command"]]) for evaluation in evaluations],
            versions=results["versions"],
            coverage=build_coverage(results["split_folder"]),
        ),
    )


def evaluation_folders(run_folder: Path) -> list[Path]:
    """The evaluations of a run, the frozen baseline first, then by name (for steps, their order).

    Raises:
        DataError: there are none.
    """
    folders = sorted(path.parent for path in (run_folder / "evaluation").glob(f"[!.]*/{RESULTS}"))
    if not folders:
        raise DataError(f"{run_folder} holds no evaluation; run dgl-scale evaluate --checkpoint {run_folder} first")
    return sorted(folders, key=lambda folder: not folder.name.startswith(FROZEN))


def run_curves(runs: Mapping[str, Path]) -> list[Curve]:
    """Loss and R@1 over the steps of some runs, by the name of each."""
    records = {name: read_metrics(folder) for name, folder in runs.items()}
    recalls = {
        "validation/text_to_video/R@1": "text to video",
        "validation/video_to_text/R@1": "video to text",
        "in_batch_R@1": "within a training batch",
    }
    many = len(runs) > 1
    loss = [Series(name, _points(rows, "loss")) for name, rows in records.items()]
    # Of several runs only one line each, or nobody could tell them apart.
    shown = list(recalls)[:1] if many else list(recalls)
    recall = [Series(name if many else recalls[key], _points(rows, key)) for name, rows in records.items() for key in shown]
    title = "R@1 on the validation split, text to video" if many else "R@1 on the validation split and within training batches"
    return [Curve("Loss on the training split", "step", "loss", loss), Curve(title, "step", "percent", recall, from_zero=True)]


def query_examples(rows: Sequence[Mapping[str, Any]], index: SplitIndex, count: int = NUM_EXAMPLES) -> list[QueryExample]:
    """The examples that `examples_rule` states, with film strips of their clips from the shards.

    Args:
        rows: text-to-video rows of a ranks.parquet, in its order.

    Raises:
        DataError: the shards lack a clip, or hold a damaged one.
    """
    clips = _Clips(index)
    examples = []
    for row in spread_over_ranks(rows, count):
        pairs = list(zip(row["top_keys"], row["top_scores"], strict=True))[:_CLIPS_PER_EXAMPLE]
        candidates = [clips.candidate(key, score, is_right=key == row["key"]) for key, score in pairs]
        is_found = any(candidate.is_right for candidate in candidates)
        right = None if is_found else clips.candidate(row["key"], row["score"], is_right=True)
        examples.append(QueryExample(row["caption"], row["rank"], candidates, right))
    return examples


def spread_over_ranks(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """`count` rows at even distances in the order of their ranks, the best and the worst among them."""
    ordered = sorted(rows, key=lambda row: float(row["rank"]))
    count = min(count, len(ordered))
    return [ordered[round(i * (len(ordered) - 1) / max(1, count - 1))] for i in range(count)]


def examples_rule(model: str, queries: int) -> str:
    """How the queries were chosen, in words."""
    return (
        f"Captions and the five clips that {model} scores highest. Chosen by rule, not by hand: of all {queries:,} captions in "
        f"the order of their rank, {min(NUM_EXAMPLES, queries)} at even distances, from the best to the worst."
    )


def build_coverage(split_folder: str) -> dict[str, str]:
    """What the shard build that made a split says of its videos; empty where there is no record of it on this machine."""
    path = Path(split_folder).parent / "build.json"
    if is_url(split_folder) or not path.is_file():
        return {}
    record = read_json(path)
    counts = record.get("coverage", {})
    words = ", ".join(f"{counts[name]:,} {name}" for name in _COVERAGE if name in counts)
    return {"videos of the shard build": words} if words else {}


class _Clips:
    """Clips of a split by key, each read once."""

    def __init__(self, index: SplitIndex) -> None:
        self._folder = index.folder
        self._position = {str(key): i for i, key in enumerate(index.keys)}
        self._reader = SampleReader(index)
        self._known: dict[str, tuple[bytes, str]] = {}

    def candidate(self, key: str, score: float, *, is_right: bool) -> Candidate:
        if key not in self._position:
            raise DataError(f"{self._folder} has no sample {key}; the shards are not those that were evaluated, evaluate again")
        if key not in self._known:
            sample = self._reader.read(self._position[key])
            self._known[key] = film_strip(sample.frames), sample.metadata.captions[0]
        strip, caption = self._known[key]
        return Candidate(key, strip, score, caption, is_right)


def _points(records: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(record["step"], record[key]) for record in records if key in record]


def _row_name(results: Mapping[str, Any], run_name: str) -> str:
    name = _NAMES[results["model"]["latent_space"]]
    step = "" if results["step"] is None else f", step {results['step']}"
    split = "" if results["split"] == "test" else f" ({results['split']})"
    return f"{name}{split}" if results["trained_parameters"] == 0 else f"{name} ({run_name}{step}){split}"


def _shown_examples(folder: Path, results: Mapping[str, Any], model: str) -> tuple[Sequence[QueryExample], str]:
    """Examples and their rule; where the shards are no longer those that were evaluated, none, and why."""
    split_folder = results["split_folder"]
    if not is_url(split_folder) and not Path(split_folder).is_dir():
        return (), f"No clips are shown: the shards are no longer at {split_folder}."
    try:
        # Few samples are shown, so no shard need be fetched for them.
        index = load_split(split_folder, cache=None)
    except StorageError as error:
        return (), f"No clips are shown: {error}."
    if index.digest != results["shards"]:
        return (), f"No clips are shown: the shards at {split_folder} have changed since the evaluation."
    return query_examples(read_ranks(folder, "text_to_video"), index), examples_rule(model, results["queries"])
