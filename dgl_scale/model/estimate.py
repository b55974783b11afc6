"""What a training step of DGL costs, from the config alone: operations and memory, no weights, no device.

Counts what the towers compute (docs/performance.md derives it): matrix products of linear layers and attention, two
operations a multiply-add. Element-wise work is left out, as FLOP counters do. Shape letters: `dgl_scale.batch`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from dgl_scale.config import ModelConfig
from dgl_scale.model.clip_shape import ClipShape, TowerShape

_FP32_BYTES = 4
# PyTorch's attention kernels recompute the scores in the backward pass: five products for two of the forward pass.
_ATTENTION_BACKWARD = 2.5


@dataclass(frozen=True)
class StepSize:
    """What goes through the model in a step of one rank.

    Attributes:
        caption_length: positions of the longest caption, start and end-of-text included.
    """

    num_videos: int
    num_captions: int
    num_frames: int
    caption_length: int


@dataclass(frozen=True)
class StepEstimate:
    """Operations and bytes of a step of one rank.

    Attributes:
        forward_flops: towers and prompts.
        backward_flops: gradients of activations, and of the prompts' own weights.
        recomputed_flops: of the second forward pass that activation checkpointing costs; else 0.
        frozen_bytes: CLIP's weights in the compute type.
        trained_bytes: prompts, their gradients and AdamW's two moments, float32, on one rank (ZeRO divides them).
        saved_bytes: activations kept from the forward to the backward pass.
        transient_bytes: how much the highest moment of the backward pass is above them.
        saved_values_per_token_and_layer: of the video tower, in units of its width D.
    """

    forward_flops: float
    backward_flops: float
    recomputed_flops: float
    frozen_bytes: int
    trained_bytes: int
    saved_bytes: int
    transient_bytes: int
    saved_values_per_token_and_layer: float

    @property
    def model_flops(self) -> float:
        """What the mathematics needs: the basis of a model FLOP utilisation."""
        return self.forward_flops + self.backward_flops

    @property
    def peak_bytes(self) -> int:
        """Weights, optimizer, saved activations and the largest transient together."""
        return self.frozen_bytes + self.trained_bytes + self.saved_bytes + self.transient_bytes


@dataclass(frozen=True)
class _Work:
    """Forward and backward operations of one part."""

    forward: float
    backward: float


def estimate_step(
    config: ModelConfig, shape: ClipShape, size: StepSize, *, bytes_per_value: int = 4, activation_checkpointing: bool = False
) -> StepEstimate:
    """Estimate a training step.

    Args:
        config: which prompts.
        shape: of the CLIP; `load_backbone(..., with_weights=False).shape`.
        size: of a rank's micro-batch.
        bytes_per_value: of the compute type.
        activation_checkpointing: whether layers are recomputed.

    Raises:
        ValueError: `config` is of a frozen CLIP, which has no training step.
    """
    if config.latent_space is None:
        raise ValueError("a frozen CLIP has no training step")
    towers = [*_video_work(config, shape, size), *_text_work(config, shape, size)]
    prompts = _prompts_work(config, shape)
    saved, transient, per_token = _activation_values(config, shape, size, activation_checkpointing)
    tower_forward = sum(part.forward for part in towers)
    return StepEstimate(
        forward_flops=tower_forward + prompts.forward,
        backward_flops=sum(part.backward for part in towers) + prompts.backward,
        recomputed_flops=tower_forward if activation_checkpointing else 0.0,
        frozen_bytes=frozen_parameters(shape) * bytes_per_value,
        trained_bytes=4 * _FP32_BYTES * trained_parameters(config, shape),
        saved_bytes=saved * bytes_per_value,
        transient_bytes=transient * bytes_per_value,
        saved_values_per_token_and_layer=per_token,
    )


def largest_batch(
    config: ModelConfig,
    shape: ClipShape,
    memory_bytes: float,
    *,
    caption_length: int,
    bytes_per_value: int = 4,
    activation_checkpointing: bool = False,
) -> int:
    """The largest micro-batch, of as many videos as captions, whose estimated peak is within `memory_bytes`; 0: none."""

    def fits(batch: int) -> bool:
        size = StepSize(batch, batch, config.num_frames, caption_length)
        estimate = estimate_step(config, shape, size, bytes_per_value=bytes_per_value, activation_checkpointing=activation_checkpointing)
        return estimate.peak_bytes <= memory_bytes

    fitting, too_large = 0, 1
    while fits(too_large):
        fitting, too_large = too_large, 2 * too_large
    while too_large - fitting > 1:
        middle = (fitting + too_large) // 2
        fitting, too_large = (middle, too_large) if fits(middle) else (fitting, middle)
    return fitting


def trained_parameters(config: ModelConfig, shape: ClipShape) -> int:
    """How many numbers are trained."""
    vision, text = shape.vision.width, shape.text.width
    depth = config.prompt_depth or shape.vision.num_layers
    local, prefix, postfix = config.num_local_prompts, config.num_prefix_prompts, config.num_postfix_prompts
    count = config.num_global_prompts * vision
    if config.latent_space == "linear":
        return count + depth * max(local, prefix, postfix) * vision + (bool(prefix) + bool(postfix)) * (vision * text + text)
    num_tokens = prefix + postfix + local * config.num_frames
    block = 12 * vision**2 + 13 * vision  # four square maps, an MLP of ratio 4, their biases and two norms
    to_text = 2 * vision**2 + 2 * vision + 2 * vision * text + text
    return count + num_tokens * depth * vision + block + (to_text if prefix + postfix else 0)


def reached_parameters(config: ModelConfig, shape: ClipShape) -> int:
    """How many trained numbers get a gradient: in the linear latent space no caption's feature sees the postfix prompts' projection."""
    is_spared = config.latent_space == "linear" and config.num_postfix_prompts > 0
    return trained_parameters(config, shape) - is_spared * (shape.vision.width + 1) * shape.text.width


def frozen_parameters(shape: ClipShape) -> int:
    """How many numbers the CLIP has."""
    vision, text = shape.vision, shape.text
    embedding = 3 * shape.patch_size**2 * vision.width + vision.width * (shape.num_patches + 2) + 2 * vision.width * shape.has_ln_pre
    words = (shape.vocab_size + shape.context_length) * text.width
    ends = (vision.width + text.width) * (shape.embed_dim + 2)
    return embedding + words + ends + _layer_parameters(vision) + _layer_parameters(text)


def _layer_parameters(tower: TowerShape) -> int:
    width, hidden = tower.width, tower.mlp_width
    return tower.num_layers * (4 * (width**2 + width) + 2 * width * hidden + hidden + width + 4 * width)


def _linear(rows: float, inputs: int, outputs: int) -> float:
    return 2.0 * rows * inputs * outputs


def _attention(rows: float, keys: float, width: int) -> float:
    return 4.0 * rows * keys * width


def _finish(rows: float, tower: TowerShape) -> float:
    """Output projection and MLP."""
    return _linear(rows, tower.width, tower.width) + 2 * _linear(rows, tower.width, tower.mlp_width)


def _local_prompts(config: ModelConfig, shape: ClipShape, layer: int) -> tuple[int, int]:
    """Local prompts that a frame sees in a layer, and how many of them are projected in all."""
    num_local = config.num_local_prompts if layer < (config.prompt_depth or shape.vision.num_layers) else 0
    return num_local, num_local * (config.num_frames if config.latent_space == "transformer" else 1)


def _num_read(config: ModelConfig) -> tuple[int, bool]:
    num_globals = {"global_0": 1, "global_0_and_frame_mean": 1, "frame_mean": 0}.get(config.video_feature, config.num_global_prompts)
    return num_globals, "frame" in config.video_feature


def _video_work(config: ModelConfig, shape: ClipShape, size: StepSize) -> Iterator[_Work]:
    tower, num_globals = shape.vision, config.num_global_prompts
    width, frames = tower.width, size.num_videos * size.num_frames
    own = shape.num_patches + 1  # tokens of a frame
    tokens, global_tokens = frames * own, size.num_videos * num_globals
    yield _Work(_linear(frames * shape.num_patches, 3 * shape.patch_size**2, width), 0.0)
    global_read, reads_frames = _num_read(config)
    for layer in range(tower.num_layers):
        num_local, projected = _local_prompts(config, shape, layer)
        keys = own + num_local + num_globals
        is_last = layer == tower.num_layers - 1
        frame_queries = (frames if reads_frames else 0) if is_last else tokens
        global_queries = size.num_videos * global_read if is_last else global_tokens
        queries = frame_queries + global_queries
        attention = _attention(frame_queries, keys, width) + _attention(global_queries, size.num_frames * keys, width)
        linear = _linear(queries, width, width) + _linear(tokens + global_tokens + projected, width, 2 * width) + _finish(queries, tower)
        # No gradient enters the first layer's frame tokens.
        spared = _linear(frame_queries, width, width) + _linear(tokens, width, 2 * width) if layer == 0 else 0.0
        yield _Work(linear + attention, linear - spared + _ATTENTION_BACKWARD * attention)
    read = _linear(size.num_videos, width, shape.embed_dim)
    yield _Work(read, read)


def _text_work(config: ModelConfig, shape: ClipShape, size: StepSize) -> Iterator[_Work]:
    tower, width = shape.text, shape.text.width
    words = size.num_captions * (size.caption_length - 1)
    for layer in range(tower.num_layers):
        prefix = config.num_prefix_prompts if layer < _prompted_text_layers(config, shape) else 0
        keys = prefix + size.caption_length
        is_last = layer == tower.num_layers - 1
        queries = size.num_captions if is_last else words
        attention = _attention(queries, keys, width)
        linear = _linear(queries, width, width) + _linear(words + prefix, width, 2 * width) + _finish(queries, tower)
        # The start token, one row for all captions, sees no prompt and so has no gradient; nor has the first layer's input.
        start = _linear(1, width, 2 * width) + (0.0 if is_last else _finish(1, tower))
        spared = _linear(queries, width, width) + _linear(words, width, 2 * width) if layer == 0 else 0.0
        has_gradient = _prompted_text_layers(config, shape) > 0
        yield _Work(linear + start + attention, (linear - spared + _ATTENTION_BACKWARD * attention) if has_gradient else 0.0)
    read = _linear(size.num_captions, width, shape.embed_dim)
    yield _Work(read, read)


def _prompted_text_layers(config: ModelConfig, shape: ClipShape) -> int:
    if not config.num_prefix_prompts:
        return 0
    depth = config.prompt_depth or shape.vision.num_layers
    return sum(layer * shape.vision.num_layers // shape.text.num_layers < depth for layer in range(shape.text.num_layers))


def _prompts_work(config: ModelConfig, shape: ClipShape) -> _Work:
    width, text_layers = shape.vision.width, _prompted_text_layers(config, shape)
    if config.latent_space == "linear":
        linear = _linear(text_layers * config.num_prefix_prompts, width, shape.text.width)
        return _Work(linear, 2 * linear)
    depth = config.prompt_depth or shape.vision.num_layers
    num_tokens = config.num_prefix_prompts + config.num_postfix_prompts + config.num_local_prompts * config.num_frames
    block = _linear(depth * num_tokens, width, 12 * width)
    to_text = _linear(text_layers * config.num_prefix_prompts, width, 2 * width)
    to_text += _linear(text_layers * config.num_prefix_prompts, 2 * width, shape.text.width)
    attention = _attention(depth * num_tokens, num_tokens, width)
    # Trained weights have gradients of their own: twice the forward products.
    return _Work(block + to_text + attention, 2 * (block + to_text) + _ATTENTION_BACKWARD * attention)


def _activation_values(config: ModelConfig, shape: ClipShape, size: StepSize, recompute: bool) -> tuple[int, int, float]:
    """Values saved for the backward pass, what the peak adds to them, and saved ones per video token and layer over D."""
    video, text = _video_saved(config, shape, size), _text_saved(config, shape, size)
    tokens = size.num_videos * (size.num_frames * (shape.num_patches + 1) + config.num_global_prompts)
    words = size.num_captions * (size.caption_length - 1)
    per_token = video[len(video) // 2] / (tokens * shape.vision.width)
    # The MLP's backward pass makes the gradients of its hidden layer, after the activation and before it.
    video_transient, text_transient = 2 * tokens * shape.vision.mlp_width, 2 * words * shape.text.mlp_width
    if recompute:
        inputs = shape.vision.num_layers * tokens * shape.vision.width + shape.text.num_layers * words * shape.text.width
        largest = max(max(video) + video_transient, max(text) + text_transient)
        return int(inputs + _prompts_saved(config, shape)), int(largest), per_token
    saved = sum(video) + sum(text) + _prompts_saved(config, shape)
    # The text tower, which ran last, is first in the backward pass; what is behind it is free again.
    peaks = (text_transient - text[-1], video_transient - video[-1] - sum(text), 0)
    return int(saved), int(max(peaks)), per_token


def _prompts_saved(config: ModelConfig, shape: ClipShape) -> float:
    """Values saved by the prompts' own computation, which is trained and so keeps the inputs of its linear layers too."""
    width, text_layers = shape.vision.width, _prompted_text_layers(config, shape)
    text_rows = text_layers * config.num_prefix_prompts
    if config.latent_space == "linear":
        return float(text_rows * width)
    depth = config.prompt_depth or shape.vision.num_layers
    num_tokens = config.num_prefix_prompts + config.num_postfix_prompts + config.num_local_prompts * config.num_frames
    # Norms 3, query, key and value 3, attention 2, and four times 3 in the MLP: before, in and after its activation.
    return float(depth * num_tokens * 20 * width + text_rows * 7 * width)


def _video_saved(config: ModelConfig, shape: ClipShape, size: StepSize) -> list[float]:
    """Values that each vision layer saves: `ln_1`'s input, query, keys and values, attention's output, `ln_2`'s input, MLP."""
    tower, num_globals = shape.vision, config.num_global_prompts
    own = shape.num_patches + 1
    frames = size.num_videos * size.num_frames
    tokens = frames * own
    rows = tokens + size.num_videos * num_globals
    saved = []
    for layer in range(tower.num_layers):
        num_local, projected = _local_prompts(config, shape, layer)
        keys_values = 2.0 * frames * (own + num_local + num_globals) * tower.width
        normed = (projected + rows - (tokens if layer == 0 else 0)) * tower.width
        if layer == tower.num_layers - 1:
            saved.append(keys_values + normed)
            continue
        log_sums = rows * tower.num_heads
        saved.append(keys_values + normed + rows * (3 * tower.width + tower.mlp_width) + log_sums)
    return saved


def _text_saved(config: ModelConfig, shape: ClipShape, size: StepSize) -> list[float]:
    """As `_video_saved`, of the text layers; nothing before the first prompt has a gradient, and all prompts begin at layer 0."""
    tower = shape.text
    words = size.num_captions * (size.caption_length - 1)
    prompted = _prompted_text_layers(config, shape)
    if not prompted:
        return [0.0]
    saved = []
    for layer in range(tower.num_layers):
        prefix = config.num_prefix_prompts if layer < prompted else 0
        keys_values = 2.0 * size.num_captions * (size.caption_length + prefix) * tower.width
        normed = (prefix + (0 if layer == 0 else words)) * tower.width
        if layer == tower.num_layers - 1:
            saved.append(keys_values + normed)
            continue
        saved.append(keys_values + normed + words * (3 * tower.width + tower.mlp_width + tower.num_heads))
    return saved
