"""DGL as its page of definitions states it: one video and one caption at a time, whole sequences, explicit masks.

Slow and obvious on purpose. Nothing is shared with the package: it reads open_clip's own state dict and config,
gives every prompt its query and its MLP, keeps postfix prompts and padding, and projects queries, keys and
values apart.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def video_features(
    clip: Mapping[str, Any], state: Mapping[str, Tensor], prompts: Mapping[str, Tensor], settings: Mapping[str, Any], frames: Tensor
) -> Tensor:
    """Normalised video features `[B, E]` of frames `[B, T, 3, H, W]`."""
    if settings["latent_space"] is None:
        return torch.stack([_frozen_video(clip, state, video) for video in frames])
    local_prompts, _ = latent_prompts(clip, prompts, settings, frames.shape[1])
    return torch.stack([_one_video(clip, state, prompts["global_prompts"], local_prompts, settings, video) for video in frames])


def text_features(
    clip: Mapping[str, Any], state: Mapping[str, Tensor], prompts: Mapping[str, Tensor], settings: Mapping[str, Any], tokens: Tensor
) -> Tensor:
    """Normalised text features `[C, E]` of tokens `[C, L]`."""
    text_prompts: list[tuple[Tensor, Tensor]] = []
    if settings["latent_space"] is not None:
        _, text_prompts = latent_prompts(clip, prompts, settings, settings["num_frames"])
    return torch.stack([_one_caption(clip, state, text_prompts, caption) for caption in tokens])


def similarity(state: Mapping[str, Tensor], text: Tensor, video: Tensor) -> Tensor:
    """`[N, M]` from normalised features."""
    return torch.stack([torch.stack([state["logit_scale"].exp() * (t * v).sum() for v in video]) for t in text])


def latent_prompts(
    clip: Mapping[str, Any], prompts: Mapping[str, Tensor], settings: Mapping[str, Any], num_frames: int
) -> tuple[list[list[Tensor]], list[tuple[Tensor, Tensor]]]:
    """Local prompts by vision layer and frame, and (prefix, postfix) by text layer; unprompted layers are left out."""
    vision_layers, text_layers = clip["vision_cfg"]["layers"], clip["text_cfg"]["layers"]
    depth = settings["prompt_depth"] or vision_layers
    local_prompts, by_latent = [], []
    for latent in range(depth):
        if settings["latent_space"] == "linear":
            frame_prompts, text_prompts = _linear_latent(prompts, settings, latent, num_frames)
        else:
            frame_prompts, text_prompts = _transformer_latent(clip, prompts, settings, latent)
        local_prompts.append(frame_prompts)
        by_latent.append(text_prompts)
    latents = [math.floor(layer * vision_layers / text_layers) for layer in range(text_layers)]
    return local_prompts, [by_latent[latent] for latent in latents if latent < depth]


def _linear_latent(
    prompts: Mapping[str, Tensor], settings: Mapping[str, Any], latent: int, num_frames: int
) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    rows = prompts["latent_space.table"][latent]
    text = []
    for kind in ("prefix", "postfix"):
        count = settings[f"num_{kind}_prompts"]
        name = f"latent_space.{kind}"
        text.append(rows[:count] @ prompts[f"{name}.weight"].T + prompts[f"{name}.bias"] if count else rows[:0, :0])
    return [rows[: settings["num_local_prompts"]] for _ in range(num_frames)], (text[0], text[1])


def _transformer_latent(
    clip: Mapping[str, Any], prompts: Mapping[str, Tensor], settings: Mapping[str, Any], latent: int
) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    tokens = prompts["latent_space.table"][:, latent]
    block = {name.removeprefix("latent_space.block."): tensor for name, tensor in prompts.items()}
    width = tokens.shape[1]
    weights = {f"{part}.weight": block["query_key_value.weight"][i * width : (i + 1) * width] for i, part in enumerate("qkv")}
    biases = {f"{part}.bias": block["query_key_value.bias"][i * width : (i + 1) * width] for i, part in enumerate("qkv")}
    heads = clip["vision_cfg"]["width"] // clip["vision_cfg"]["head_width"]
    everything = torch.ones(len(tokens), len(tokens), dtype=torch.bool)
    normed = _layer_norm(tokens, block["ln_1.weight"], block["ln_1.bias"])
    tokens = tokens + _attention(normed, weights | biases | _renamed(block, "out."), heads, everything)
    hidden = _layer_norm(tokens, block["ln_2.weight"], block["ln_2.bias"]) @ block["mlp_in.weight"].T + block["mlp_in.bias"]
    tokens = tokens + _quick_gelu(hidden) @ block["mlp_out.weight"].T + block["mlp_out.bias"]
    num_prefix, num_local = settings["num_prefix_prompts"], settings["num_local_prompts"]
    num_text = num_prefix + settings["num_postfix_prompts"]
    text = tokens[:num_text]
    if num_text:
        hidden = _quick_gelu(text @ prompts["latent_space.to_text.mlp_in.weight"].T + prompts["latent_space.to_text.mlp_in.bias"])
        text = hidden @ prompts["latent_space.to_text.mlp_out.weight"].T + prompts["latent_space.to_text.mlp_out.bias"]
    frames = [tokens[num_text + t * num_local : num_text + (t + 1) * num_local] for t in range(settings["num_frames"])]
    return frames, (text[:num_prefix], text[num_prefix:])


def _one_video(
    clip: Mapping[str, Any],
    state: Mapping[str, Tensor],
    global_prompts: Tensor,
    local_prompts: list[list[Tensor]],
    settings: Mapping[str, Any],
    frames: Tensor,
) -> Tensor:
    num_globals, num_layers = len(global_prompts), clip["vision_cfg"]["layers"]
    global_tokens = global_prompts
    own = [_embed_frame(clip, state, frame) for frame in frames]
    for layer in range(num_layers):
        pieces, owner = [global_tokens], [-1] * num_globals
        for t, tokens in enumerate(own):
            local = local_prompts[layer][t] if layer < len(local_prompts) else tokens[:0]
            pieces += [tokens[:1], local, tokens[1:]]
            owner += [t] * (len(tokens) + len(local))
        size = len(owner)
        mask = torch.zeros(size, size, dtype=torch.bool)
        for q in range(size):
            for k in range(size):
                mask[q, k] = owner[q] == -1 or owner[k] == -1 or owner[q] == owner[k]
        sequence = _clip_block(clip, state, f"visual.transformer.resblocks.{layer}.", "vision_cfg", torch.cat(pieces), mask)
        global_tokens = sequence[:num_globals]
        own = []
        position = num_globals
        for _ in frames:
            local_count = (size - num_globals) // len(frames) - _num_patches(clip) - 1
            kept = (
                sequence[position : position + 1],
                sequence[position + 1 + local_count : position + 2 + local_count + _num_patches(clip) - 1],
            )
            own.append(torch.cat(kept))
            position += 1 + local_count + _num_patches(clip)
    outputs = [_layer_norm(tokens, state["visual.ln_post.weight"], state["visual.ln_post.bias"]) @ state["visual.proj"] for tokens in own]
    global_outputs = _layer_norm(global_tokens, state["visual.ln_post.weight"], state["visual.ln_post.bias"]) @ state["visual.proj"]
    class_outputs = torch.stack([tokens[0] for tokens in outputs])
    chosen = {
        "global_0": global_outputs[:1],
        "global_mean": global_outputs,
        "frame_mean": class_outputs,
        "global_and_frame_mean": torch.cat([global_outputs, class_outputs]),
        "global_0_and_frame_mean": torch.cat([global_outputs[:1], class_outputs]),
    }[settings["video_feature"]]
    return _unit(chosen.mean(dim=0))


def _frozen_video(clip: Mapping[str, Any], state: Mapping[str, Tensor], frames: Tensor) -> Tensor:
    features = []
    for frame in frames:
        tokens = _embed_frame(clip, state, frame)
        everything = torch.ones(len(tokens), len(tokens), dtype=torch.bool)
        for layer in range(clip["vision_cfg"]["layers"]):
            tokens = _clip_block(clip, state, f"visual.transformer.resblocks.{layer}.", "vision_cfg", tokens, everything)
        features.append(_unit(_layer_norm(tokens[0], state["visual.ln_post.weight"], state["visual.ln_post.bias"]) @ state["visual.proj"]))
    return _unit(torch.stack(features).mean(dim=0))


def _one_caption(clip: Mapping[str, Any], state: Mapping[str, Tensor], text_prompts: list[tuple[Tensor, Tensor]], tokens: Tensor) -> Tensor:
    words = state["token_embedding.weight"][tokens] + state["positional_embedding"][: len(tokens)]
    end = int(tokens.argmax())
    for layer in range(clip["text_cfg"]["layers"]):
        prefix, postfix = text_prompts[layer] if layer < len(text_prompts) else (words[:0], words[:0])
        prefix, postfix = prefix.reshape(-1, words.shape[1]), postfix.reshape(-1, words.shape[1])
        sequence = torch.cat([words[:1], prefix, words[1:], postfix])
        causal = torch.ones(len(sequence), len(sequence), dtype=torch.bool).tril()
        sequence = _clip_block(clip, state, f"transformer.resblocks.{layer}.", "text_cfg", sequence, causal)
        words = torch.cat([sequence[:1], sequence[1 + len(prefix) : len(prefix) + len(words)]])
    return _unit(_layer_norm(words[end], state["ln_final.weight"], state["ln_final.bias"]) @ state["text_projection"])


def _embed_frame(clip: Mapping[str, Any], state: Mapping[str, Tensor], frame: Tensor) -> Tensor:
    size, patch = clip["vision_cfg"]["image_size"], clip["vision_cfg"]["patch_size"]
    tokens = [state["visual.class_embedding"]]
    for top in range(0, size, patch):
        for left in range(0, size, patch):
            pixels = frame[:, top : top + patch, left : left + patch]
            tokens.append((state["visual.conv1.weight"] * pixels).sum(dim=(1, 2, 3)))
    embedded = torch.stack(tokens) + state["visual.positional_embedding"]
    if clip["vision_cfg"].get("no_ln_pre"):
        return embedded
    return _layer_norm(embedded, state["visual.ln_pre.weight"], state["visual.ln_pre.bias"])


def _clip_block(clip: Mapping[str, Any], state: Mapping[str, Tensor], name: str, tower: str, tokens: Tensor, mask: Tensor) -> Tensor:
    weights = {key.removeprefix(name): tensor for key, tensor in state.items() if key.startswith(name)}
    width = tokens.shape[1]
    heads = clip["text_cfg"]["heads"] if tower == "text_cfg" else width // clip["vision_cfg"]["head_width"]
    projections = _renamed(weights, "attn.out_proj.")
    for i, part in enumerate("qkv"):
        projections[f"{part}.weight"] = weights["attn.in_proj_weight"][i * width : (i + 1) * width]
        projections[f"{part}.bias"] = weights["attn.in_proj_bias"][i * width : (i + 1) * width]
    mixed = _attention(_layer_norm(tokens, weights["ln_1.weight"], weights["ln_1.bias"]), projections, heads, mask)
    tokens = tokens + mixed * weights.get("ls_1.gamma", 1.0)
    hidden = _layer_norm(tokens, weights["ln_2.weight"], weights["ln_2.bias"]) @ weights["mlp.c_fc.weight"].T + weights["mlp.c_fc.bias"]
    hidden = _quick_gelu(hidden) if clip.get("quick_gelu") else torch.nn.functional.gelu(hidden)
    return tokens + (hidden @ weights["mlp.c_proj.weight"].T + weights["mlp.c_proj.bias"]) * weights.get("ls_2.gamma", 1.0)


def _attention(tokens: Tensor, weights: Mapping[str, Tensor], heads: int, mask: Tensor) -> Tensor:
    query = tokens @ weights["q.weight"].T + weights["q.bias"]
    key = tokens @ weights["k.weight"].T + weights["k.bias"]
    value = tokens @ weights["v.weight"].T + weights["v.bias"]
    size = tokens.shape[1] // heads
    mixed = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / math.sqrt(size)
        mixed.append(scores.masked_fill(~mask, float("-inf")).softmax(dim=1) @ value[:, part])
    return torch.cat(mixed, dim=1) @ weights["out.weight"].T + weights["out.bias"]


def _renamed(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {"out.weight": weights[f"{prefix}weight"], "out.bias": weights[f"{prefix}bias"]}


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean, variance = x.mean(dim=-1, keepdim=True), x.var(dim=-1, keepdim=True, unbiased=False)
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _num_patches(clip: Mapping[str, Any]) -> int:
    return (clip["vision_cfg"]["image_size"] // clip["vision_cfg"]["patch_size"]) ** 2


def _unit(x: Tensor) -> Tensor:
    return x / x.norm()
