"""What the model looks at, as pictures: written, read back, drawn where the weight is, shown in the report."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dgl_scale.config import RunConfig
from dgl_scale.data.index import load_split
from dgl_scale.data.tokenizer import load_tokenizer
from dgl_scale.errors import DataError
from dgl_scale.evaluation.attention_picture import AttentionExample, attention_examples, heat_picture, read_examples, write_examples
from dgl_scale.evaluation.embedding import encode_split
from dgl_scale.evaluation.features import Features
from dgl_scale.evaluation.ranks import DirectionRanks
from dgl_scale.evaluation.report import Report, ReportTable, render_report
from dgl_scale.evaluation.retrieval import rank_features
from dgl_scale.evaluation.run_report import report_row
from dgl_scale.model import DGL, build_model

CPU = torch.device("cpu")


@pytest.fixture
def examples(tiny_config: RunConfig) -> tuple[DGL, Features, DirectionRanks, list[AttentionExample]]:
    model = build_model(tiny_config.model, seed=1)
    index = load_split(str(tiny_config.data.test))
    tokenizer = load_tokenizer(tiny_config.model.clip, tiny_config.data.max_words)
    features = encode_split(model, index, tokenizer, start=0, stop=index.num_videos, config=tiny_config, device=CPU)
    ranks = rank_features(features, tiny_config.evaluation).text_to_video
    return model, features, ranks, attention_examples(model, index, tokenizer, tiny_config, features, ranks)


def test_best_middle_and_worst_with_weights_that_share_one(
    examples: tuple[DGL, Features, DirectionRanks, list[AttentionExample]], tmp_path: Path
) -> None:
    _, _, ranks, found = examples
    ordered = sorted(ranks.ranks.tolist())
    assert [example.rank for example in found] == [ordered[0], ordered[round((len(ordered) - 1) / 2)], ordered[-1]]
    for example in found:
        assert example.caption.startswith(f"clip {int(example.key[-2:])}")  # of the clip it is shown with
        assert sum(weight for _, weight in example.frames) == pytest.approx(1)
        assert sum(weight for _, weight in example.words) + example.elsewhere["prefix prompts"] == pytest.approx(1)
        assert example.words[0][0] == "‹start›" and example.words[-1][0] == "‹end›"
    write_examples(tmp_path, found)
    assert read_examples(tmp_path) == found
    (tmp_path / "attention" / "examples.json").write_text('[{"caption": 1}]')
    with pytest.raises(DataError, match="is damaged"):
        read_examples(tmp_path)
    assert read_examples(tmp_path / "attention") == []


def test_heat_glows_where_the_weight_is() -> None:
    weights = np.zeros((4, 4))
    weights[1, 2] = 1.0
    picture = np.asarray(Image.open(io.BytesIO(heat_picture(np.full((40, 40, 3), 128, np.uint8), weights)))).astype(int)
    redness = picture[..., 0] - picture[..., 2]
    side = len(picture) // 4
    cells = redness.reshape(4, side, 4, side).mean(axis=(1, 3))
    assert np.unravel_index(cells.argmax(), cells.shape) == (1, 2)
    assert cells[3, 0] < 0.1 * cells[1, 2]


def test_the_report_shows_them_escaped(examples: tuple[DGL, Features, DirectionRanks, list[AttentionExample]]) -> None:
    figures = {"R@1": 1.0, "R@5": 2.0, "R@10": 3.0, "MdR": 4.0, "MnR": 5.0}
    results = {"trained_parameters": 1, "trained_share": 0.1, "text_to_video": figures, "video_to_text": figures, "selection": ""}
    page = render_report(Report("t", "s", [ReportTable("x", [report_row("m", results)])], attention={"m": examples[3]}))
    assert page.count('class="attended"') == 3 and "<script>alert" not in page
    assert page.count("% of the weight on frames lies") == 9
