"""A few clips with what the model looks at in them: heat over each frame, a weight for each frame and each word.

In an evaluation folder: attention/examples.json and attention/<example>-<frame>.jpg.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dgl_scale.batch import normalise_frames
from dgl_scale.config import RunConfig
from dgl_scale.data.index import SplitIndex
from dgl_scale.data.loader import evaluation_batches
from dgl_scale.data.tokenizer import Tokenizer
from dgl_scale.errors import DataError
from dgl_scale.evaluation.features import Features
from dgl_scale.evaluation.ranks import DirectionRanks
from dgl_scale.files import read_json, write_json
from dgl_scale.model import DGL

FOLDER = "attention"
NUM_EXAMPLES = 3
_EXAMPLES = "examples.json"
_MAX_FRAMES = 12
_SIDE = 144
_QUALITY = 85
_HEAT = np.array([255.0, 96.0, 0.0])
_STRONGEST = 0.8
_GREYED = 0.45


@dataclass(frozen=True)
class AttentionExample:
    """A caption, its right clip, and the weights of the last layer, means over heads.

    Attributes:
        rank: of the right clip for the caption.
        frames: JPEG of each shown frame with its heat, and the frame's weight among all frames of the clip.
        words: pieces of the caption as the text tower sees them, start and end included, with the weight of each.
        elsewhere: what the video feature's query gives to global prompts, to local prompts and to class tokens, and
            what the end-of-text token gives to prefix prompts; shares of 1.
    """

    caption: str
    key: str
    rank: float
    frames: Sequence[tuple[bytes, float]]
    words: Sequence[tuple[str, float]]
    elsewhere: dict[str, float]


def attention_examples(
    model: DGL, index: SplitIndex, tokenizer: Tokenizer, config: RunConfig, features: Features, ranks: DirectionRanks
) -> list[AttentionExample]:
    """The captions whose right clip ranks best, in the middle and worst, with what the model looks at in clip and caption.

    Args:
        model: on the CPU; the frozen CLIP shows what its frames' class tokens look at.
        features: of the whole split, for keys, tokens and which caption is of which video.
        ranks: text to video.
    """
    order = torch.argsort(ranks.ranks, stable=True).tolist()
    count = min(NUM_EXAMPLES, len(order))
    chosen = [order[round(i * (len(order) - 1) / max(1, count - 1))] for i in range(count)]
    position = {str(key): i for i, key in enumerate(index.keys)}
    examples = []
    for query in chosen:
        video = int(features.video_index[query])
        first = int((features.video_index < video).sum())
        place = position[features.keys[video]]
        (batch,) = evaluation_batches(
            index, tokenizer, model.image_size, config.model.num_frames, start=place, stop=place + 1, batch_size=1, num_workers=0
        )
        examples.append(
            _example(model, tokenizer, batch.frames, batch.tokens[query - first], features.keys[video], float(ranks.ranks[query]))
        )
    return examples


def heat_picture(frame: np.ndarray, weights: np.ndarray) -> bytes:
    """JPEG of a frame, paler where nothing is looked at, glowing where much is.

    Args:
        frame: uint8 `[H, W, 3]`.
        weights: `[rows, columns]` of its patches, 1 for the strongest of the clip.
    """
    picture = np.asarray(Image.fromarray(frame).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    heat = Image.fromarray(weights.astype(np.float32)).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    alpha = _STRONGEST * np.clip(np.asarray(heat, dtype=np.float64), 0, 1)[..., None]
    grey = picture.mean(axis=2, keepdims=True)
    mixed = (_GREYED * grey + (1 - _GREYED) * picture) * (1 - alpha) + _HEAT * alpha
    stream = io.BytesIO()
    Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def write_examples(folder: Path, examples: Sequence[AttentionExample]) -> None:
    """Write `attention/` into an evaluation folder that is being made."""
    target = folder / FOLDER
    target.mkdir()
    rows = []
    for number, example in enumerate(examples):
        files = []
        for place, (jpeg, weight) in enumerate(example.frames):
            name = f"{number}-{place:02d}.jpg"
            (target / name).write_bytes(jpeg)
            files.append([name, weight])
        rows.append({**vars(example), "frames": files})
    write_json(target / _EXAMPLES, rows)


def read_examples(folder: Path) -> list[AttentionExample]:
    """The examples of an evaluation folder; none where it holds none.

    Raises:
        DataError: they are damaged.
    """
    source = folder / FOLDER
    if not (source / _EXAMPLES).is_file():
        return []
    try:
        return [_read_example(source, row) for row in read_json(source / _EXAMPLES)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{source} is damaged ({type(error).__name__}); evaluate again") from error


def _read_example(source: Path, row: dict[str, Any]) -> AttentionExample:
    # Names come from a file: only their last part counts, so that none leads out of the folder.
    frames = [((source / Path(name).name).read_bytes(), float(weight)) for name, weight in row["frames"]]
    return AttentionExample(**{**row, "frames": frames, "words": [(str(word), float(weight)) for word, weight in row["words"]]})


def _example(model: DGL, tokenizer: Tokenizer, frames: Tensor, tokens: Tensor, key: str, rank: float) -> AttentionExample:
    normalised = normalise_frames(frames, model.image_mean, model.image_std, model.video.dtype)
    video, text = model.attention_maps(normalised, tokens.unsqueeze(0))
    patches, of_frames = video.patches[0, 0], video.frames[0, 0]
    strongest = patches.amax()
    shown = np.linspace(0, len(patches) - 1, min(_MAX_FRAMES, len(patches))).round().astype(int).tolist()
    pictures = [
        (
            heat_picture(frames[0, t].permute(1, 2, 0).numpy(), (patches[t] / strongest).double().numpy()),
            float(of_frames[t] / of_frames.sum()),
        )
        for t in shown
    ]
    length = int(tokens.argmax()) + 1
    pieces = tokenizer.pieces(tokens[:length])
    words = list(zip(pieces, text.words[0, :length].tolist(), strict=True))
    elsewhere = {
        "global prompts": float(video.global_tokens[0, 0].sum()),
        "local prompts": float(video.local_prompts[0, 0].sum()),
        "class tokens": float(video.class_tokens[0, 0].sum()),
        "prefix prompts": float(text.prefix[0].sum()),
    }
    return AttentionExample("".join(pieces[1:-1]).strip(), key, rank, pictures, words, elsewhere)
