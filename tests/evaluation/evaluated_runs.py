"""Run folders with a real evaluation of a split, made by the project's own writers from features that were drawn, not encoded."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from dgl_scale.config import EvaluationConfig
from dgl_scale.data.index import load_split
from dgl_scale.evaluation.embedding import read_annotations
from dgl_scale.evaluation.features import Features
from dgl_scale.evaluation.results import write_results
from dgl_scale.evaluation.retrieval import evaluate_features

_SIZE = 8


def write_run(
    run_folder: Path, split_folder: Path, *, noise: float, latent_space: str | None = "linear", seed: int = 0, **results: Any
) -> Path:
    """A run folder with one evaluation, a metrics.jsonl and a config.yaml; returns the evaluation's folder.

    Args:
        noise: how far videos lie from their captions; 0 finds all.
        latent_space: None for the frozen CLIP.
        results: what results.json shall say otherwise.
    """
    index = load_split(split_folder)
    keys = tuple(str(key) for key in index.keys)
    annotations = read_annotations(index, keys)
    video_index = torch.repeat_interleave(torch.arange(len(keys)), torch.tensor(index.num_captions.tolist()))
    generator = torch.Generator().manual_seed(seed)
    video = torch.randn(len(keys), _SIZE, generator=generator)
    text = video[video_index] + noise * torch.randn(len(video_index), _SIZE, generator=generator)
    tokens = torch.arange(len(video_index))[:, None]
    features = Features(F.normalize(video, dim=-1), F.normalize(text, dim=-1), video_index, tokens, keys, 100.0)
    retrieval = evaluate_features(features, EvaluationConfig(bootstrap_samples=20, top_k=6), twins=annotations.twins, seed=0)
    step = None if latent_space is None else 20
    content = {
        **retrieval.figures,
        "trained_parameters": 0 if latent_space is None else 35_584,
        "trained_share": 0.0 if latent_space is None else 0.019,
        "model": {"clip": "tiny.json", "latent_space": latent_space, "num_frames": 3, "precision": "fp32", "seed": seed},
        "checkpoint": "frozen" if latent_space is None else str(run_folder / "checkpoints/step-00000020/prompts.safetensors"),
        "step": step,
        "selection": "highest validation mean R@1 of the run (41.50)",
        "split": "test",
        "shards": index.digest,
        "split_folder": str(split_folder),
        "seconds": 2.0,
        "command": ["dgl_scale/evaluate.py", "--config", "c.yaml", f"name=it's {seed}"],
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        **results,
    }
    folder = run_folder / "evaluation" / ("frozen-test" if step is None else f"step-{step:08d}-test")
    write_results(folder, content, retrieval, features, annotations, step=None)
    if latent_space is not None:
        _write_training(run_folder, latent_space, seed)
    return folder


def _write_training(run_folder: Path, latent_space: str, seed: int) -> None:
    records = [{"step": step, "time": float(step), "loss": 3.0 - step / 10, "in_batch_R@1": 5.0, "grad_norm": 1.0} for step in (10, 20)]
    recall = {f"validation/{direction}/R@1": 30.0 + seed for direction in ("text_to_video", "video_to_text")}
    (run_folder / "metrics.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in [*records, {"step": 20, "time": 20.0, **recall}])
    )
    (run_folder / "config.yaml").write_text(f"name: {run_folder.name}\nseed: {seed}\nmodel:\n  latent_space: {latent_space}\n")
