"""DGL: prompts over a frozen CLIP for text-video retrieval (arXiv 2401.10588)."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgl_scale.config import ModelConfig
from dgl_scale.errors import CheckpointError, DataError
from dgl_scale.model.attention_maps import TextAttention, VideoAttention, text_attention, video_attention
from dgl_scale.model.backbone import Backbone, load_backbone
from dgl_scale.model.clip_layers import LayerExecution
from dgl_scale.model.clip_shape import ClipShape
from dgl_scale.model.clip_weights import check_state, state_digest, tower_states
from dgl_scale.model.prompts import Prompts
from dgl_scale.model.text_tower import TextTower
from dgl_scale.model.video_tower import VideoTower

_INITIAL_LOGIT_SCALE = math.log(1 / 0.07)  # CLIP, section 2.5; of a model without weights
_LARGEST_NORMALISED_PIXEL = 20.0  # CLIP's own normalisation stays within 3

# Without gradients more is encoded in parts, so that memory does not grow with the number of videos. A part still
# fills a GPU: 768 frames of ViT-L/14 are 197,376 tokens.
_FRAMES_AT_ONCE = 768
_CAPTIONS_AT_ONCE = 4096


class DGL(nn.Module):
    """Video and text encoders that share their prompts; only the prompts are trained.

    With `latent_space: null` it is the frozen CLIP: a video is the mean of its frames' features.

    Attributes:
        config: what it was built from.
        shape: sizes of the CLIP.
        image_mean: of the 0-1 range, per channel, to normalise frames with.
        image_std: likewise.
        logit_scale: logarithm of CLIP's factor on cosines, a float32 scalar on the CPU, never trained.
        backbone_digest: SHA-256 of CLIP's weights, whatever file they came from; null on the meta device.
    """

    def __init__(self, config: ModelConfig, backbone: Backbone, prompts: Prompts | None) -> None:
        super().__init__()
        self.config = config
        self.shape: ClipShape = backbone.shape
        self.image_mean, self.image_std = backbone.image_mean, backbone.image_std
        self.backbone_digest = None if backbone.state is None else state_digest(backbone.state)
        # Plain attributes, since casting the module to bfloat16 would turn a scale of 100 into 98.9.
        self.logit_scale = torch.tensor(_INITIAL_LOGIT_SCALE) if backbone.state is None else backbone.state["logit_scale"].clone()
        with torch.device("meta"):
            self.video, self.text = VideoTower(backbone.shape), TextTower(backbone.shape)
        self.video.requires_grad_(False)
        self.text.requires_grad_(False)
        self.prompts = prompts
        self._frames_checked = False

    @property
    def image_size(self) -> int:
        """Pixels of a frame's side."""
        return self.shape.image_size

    @property
    def context_length(self) -> int:
        """Most tokens of a caption, start and end-of-text included."""
        return self.shape.context_length

    @property
    def embed_dim(self) -> int:
        """Dimension E of the features."""
        return self.shape.embed_dim

    def forward(self, frames: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Video features `[B, E]` and text features `[C, E]`, with prompts computed once for both.

        Arguments, results and errors as in `encode_video` and `encode_text`.
        """
        self._check_frames(frames)
        self._check_tokens(tokens)
        prompts = self._prompts()
        return self._encode_video(frames, prompts), self._encode_text(tokens, prompts)

    def encode_video(self, frames: Tensor) -> Tensor:
        """L2-normalised video features `[B, E]`, float32 (float64 of a float64 model).

        Args:
            frames: floating point `[B, T, 3, H, W]`, normalised with `image_mean` and `image_std`.

        Raises:
            DataError: another rank, size or type, no video, values that are not normalised (checked on the
                CPU and once on a GPU), or another T than a transformer latent space has prompts for.
        """
        self._check_frames(frames)
        return self._encode_video(frames, self._prompts())

    def encode_text(self, tokens: Tensor) -> Tensor:
        """L2-normalised text features `[C, E]`, type as `encode_video`.

        Args:
            tokens: int64 `[C, L]`, L up to `context_length`: start token, words, end-of-text, padding. Tokens
                left on the CPU spare a GPU a synchronisation.

        Raises:
            DataError: another rank or type, no caption, or (checked on the CPU only) an id out of range,
                a caption without end-of-text, or captions that start differently.
        """
        self._check_tokens(tokens)
        return self._encode_text(tokens, self._prompts())

    def frame_features(self, frames: Tensor) -> Tensor:
        """L2-normalised features `[B, T, E]` of the frozen CLIP for frames as of `encode_video`, any T."""
        self._check_frames(frames, any_count=True)
        return _normalise(self.video.frame_features(frames))

    def attention_maps(self, frames: Tensor, tokens: Tensor, layer: int = -1) -> tuple[VideoAttention, TextAttention]:
        """What the features look at: attention weights of one layer, slowly. Arguments and errors as of `forward`.

        Args:
            frames: as of `encode_video`.
            tokens: as of `encode_text`.
            layer: of each tower, counted from its end if negative; -1 is where the features are read.

        Raises:
            DataError: also where a tower has no such layer.
        """
        self._check_frames(frames)
        self._check_tokens(tokens)
        depths = len(self.video.layers), len(self.text.layers)
        if not -min(depths) <= layer < min(depths):
            raise DataError(f"layer {layer} is not in both towers, which have {depths[0]} and {depths[1]} layers")
        prompts = self._prompts()
        grid = self.shape.image_size // self.shape.patch_size
        video = video_attention(self.video, frames, None if prompts is None else prompts[:2], layer % depths[0], grid)
        tokens = tokens.to(self.video.projection.weight.device)
        return video, text_attention(self.text, tokens, None if prompts is None else prompts[2], layer % depths[1])

    def similarity(self, text: Tensor, video: Tensor) -> Tensor:
        """Cosines `[N, M]` of text features `[N, E]` and video features `[M, E]`, times `logit_scale.exp()`."""
        cosines = _normalise(text) @ _normalise(video).T
        return self.logit_scale.to(cosines.dtype).exp() * cosines

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters of the prompts; nothing else is ever trained."""
        return [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]

    def set_execution(self, *, activation_checkpointing: bool = False, compile: bool = False) -> None:
        """How layers run: less memory for time, or a compilation for speed; neither changes results beyond rounding.

        Args:
            activation_checkpointing: recompute each layer in the backward pass: one more forward, equal gradients.
            compile: run layers through `torch.compile`. The first steps take a minute or so; a new shape of frames
                or another bucket of caption lengths compiles again. Not under ZeRO-3, which fetches weights by hooks.
        """
        self.video.execution = self.text.execution = LayerExecution(activation_checkpointing, compile)

    def prompts_state(self) -> dict[str, Tensor]:
        """The prompts by name, sharing storage with the model; empty for a frozen CLIP."""
        return {} if self.prompts is None else {name: p.detach() for name, p in self.prompts.named_parameters()}

    def load_prompts_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy prompts into the model, in place.

        Raises:
            CheckpointError: a name is missing or unknown, a shape differs, or a value is not finite.
        """
        own = self.prompts_state()
        if own.keys() != state.keys():
            missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
            raise CheckpointError(f"prompts do not fit this model: missing {missing or 'none'}, unknown {unknown or 'none'}")
        for name, tensor in own.items():
            if state[name].shape != tensor.shape:
                given, wanted = list(state[name].shape), list(tensor.shape)
                raise CheckpointError(f"prompts do not fit this model: {name} is {given}, expected {wanted}")
            if not torch.isfinite(state[name]).all():
                raise CheckpointError(f"prompts hold NaN or infinity in {name}; take an earlier checkpoint")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def _prompts(self) -> tuple[Tensor, Tensor, Tensor] | None:
        if self.prompts is None:
            return None
        # The masters stay float32; what enters the towers has their type.
        global_prompts, local_prompts, prefix = (part.to(self.video.dtype) for part in self.prompts())
        return global_prompts, local_prompts, prefix

    def _encode_video(self, frames: Tensor, prompts: tuple[Tensor, Tensor, Tensor] | None) -> Tensor:
        videos_at_once = max(1, _FRAMES_AT_ONCE // frames.shape[1])
        if torch.is_grad_enabled() or len(frames) <= videos_at_once:
            return self._encode_videos(frames, prompts)
        return torch.cat([self._encode_videos(part, prompts) for part in torch.split(frames, videos_at_once)])

    def _encode_videos(self, frames: Tensor, prompts: tuple[Tensor, Tensor, Tensor] | None) -> Tensor:
        if prompts is None:
            return _normalise(_normalise(self.video.frame_features(frames)).mean(dim=1))
        num_globals = len(prompts[0])
        num_read, reads_frames = {
            "global_0": (1, False),
            "global_mean": (num_globals, False),
            "frame_mean": (0, True),
            "global_and_frame_mean": (num_globals, True),
            "global_0_and_frame_mean": (1, True),
        }[self.config.video_feature]
        return _normalise(self.video(frames, *prompts[:2], num_read, reads_frames))

    def _encode_text(self, tokens: Tensor, prompts: tuple[Tensor, Tensor, Tensor] | None) -> Tensor:
        prefix = None if prompts is None else prompts[2]
        if torch.is_grad_enabled() or len(tokens) <= _CAPTIONS_AT_ONCE:
            return _normalise(self.text(tokens, prefix))
        return torch.cat([_normalise(self.text(part, prefix)) for part in torch.split(tokens, _CAPTIONS_AT_ONCE)])

    def _check_frames(self, frames: Tensor, any_count: bool = False) -> None:
        size = self.image_size
        wanted = f"[B, T, 3, {size}, {size}]"
        if not isinstance(frames, Tensor):
            raise DataError(f"frames must be a tensor {wanted}, got {type(frames).__name__}")
        if frames.ndim != 5 or frames.shape[2:] != (3, size, size):
            raise DataError(f"frames must be {wanted}, got {list(frames.shape)}")
        if not frames.is_floating_point():
            raise DataError(f"frames must be normalised floating-point numbers, got {frames.dtype}; see normalise_frames")
        if not frames.shape[0] or not frames.shape[1]:
            raise DataError(f"no frames in a batch of shape {list(frames.shape)}")
        count = self.config.num_frames
        if self.config.latent_space == "transformer" and not any_count and frames.shape[1] != count:
            raise DataError(f"videos have {frames.shape[1]} frames, but the prompts of this model are for num_frames = {count}")
        if frames.is_meta or (not frames.is_cpu and self._frames_checked):
            return
        self._frames_checked = True
        lowest, highest = torch.stack(frames.detach().aminmax()).tolist()
        # Dark 0-255 frames may stay small, but nothing in them is below the mean and something is brighter than white.
        white = max((1 - mean) / std for mean, std in zip(self.image_mean, self.image_std, strict=True))
        if not max(-lowest, highest) <= _LARGEST_NORMALISED_PIXEL or (lowest >= 0 and highest > 1.1 * white):
            held = f"{lowest:.4g} to {highest:.4g}"
            raise DataError(f"frames hold values from {held}; normalise them with image_mean and image_std (0-255 pixels are not)")

    def _check_tokens(self, tokens: Tensor) -> None:
        if not isinstance(tokens, Tensor):
            raise DataError(f"tokens must be an int64 tensor [C, L], got {type(tokens).__name__}")
        if tokens.ndim != 2 or tokens.dtype != torch.int64:
            raise DataError(f"tokens must be int64 [C, L], got {tokens.dtype} {list(tokens.shape)}")
        if not 2 <= tokens.shape[1] <= self.context_length or not tokens.shape[0]:
            raise DataError(f"tokens must be [C, L] with C > 0 and 2 <= L <= {self.context_length}, got {list(tokens.shape)}")
        if not tokens.is_cpu:
            return
        lowest, highest = tokens.min().item(), tokens.max().item()
        if lowest < 0 or highest > self.shape.end_of_text:
            raise DataError(f"token ids reach from {lowest} to {highest}, but the vocabulary has ids 0 to {self.shape.end_of_text}")
        largest, ends = tokens.max(dim=1)
        bad = ((largest != self.shape.end_of_text) | (ends == 0)).nonzero()
        if len(bad):
            raise DataError(f"caption {bad[0].item()} of the batch has no end-of-text token (id {self.shape.end_of_text}) after its start")
        if not (tokens[:, 0] == tokens[0, 0]).all():
            raise DataError("captions of a batch must all begin with the start token")


def build_model(config: ModelConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> DGL:
    """The model of a config, frozen weights in `dtype`, prompts in float32 (float64 of a float64 model).

    Args:
        config: which CLIP, which prompts.
        seed: of the prompts' initial values, and of CLIP's weights if `config.pretrained` is null.
        dtype: compute type; float32, bfloat16, float16 or float64.
        device: where to; on `meta` no weights are read.

    Raises:
        ConfigError: an unknown or unsupported CLIP, or prompts that it has no room for.
        CheckpointError: weights that are missing, unsafe, damaged or of another model.
    """
    device = torch.device(device)
    backbone = load_backbone(config.clip, config.pretrained, seed=seed, with_weights=device.type != "meta")
    if backbone.state is not None:
        check_state(backbone.state, backbone.shape, config.pretrained or config.clip)
    prompts = _init_prompts(config, backbone.shape, seed, "meta" if device.type == "meta" else "cpu")
    model = DGL(config, backbone, prompts)
    if backbone.state is not None:
        video, text = tower_states(backbone.state, backbone.shape, dtype)
        model.video.load_state_dict(video, assign=True)
        model.text.load_state_dict(text, assign=True)
    if prompts is not None:
        prompts.to(torch.promote_types(torch.float32, dtype))
    return model.to(device)


def _init_prompts(config: ModelConfig, shape: ClipShape, seed: int, device: str) -> Prompts | None:
    if config.latent_space is None:
        return None
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed GPUs too
        return Prompts(config, shape)


def _normalise(features: Tensor) -> Tensor:
    """Unit length in at least float32."""
    return F.normalize(features.to(torch.promote_types(torch.float32, features.dtype)), dim=-1)
