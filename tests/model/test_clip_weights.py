"""Weights files of every kind: read, renamed, checked; never run."""

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dgl_scale.config import ModelConfig
from dgl_scale.errors import CheckpointError
from dgl_scale.files import file_sha256
from dgl_scale.model import DGL, backbone, build_model
from dgl_scale.model.backbone import load_backbone
from dgl_scale.model.clip_weights import read_state_dict, state_digest
from tests.reference.tiny_clip import clip_config, random_tokens, write_config


@pytest.fixture
def state(tmp_path: Path) -> dict[str, Tensor]:
    loaded = load_backbone(write_config(tmp_path, clip_config()), None, seed=5).state
    assert loaded is not None
    return loaded


def build(folder: Path, weights: Path) -> DGL:
    return build_model(ModelConfig(clip=write_config(folder, clip_config()), pretrained=str(weights), latent_space=None), seed=9)


def as_safetensors(state: dict[str, Tensor], path: Path) -> Path:
    save_file(state, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def as_state_dict(state: dict[str, Tensor], path: Path) -> Path:
    torch.save(state, path)
    return path


def as_hub_safetensors(state: dict[str, Tensor], path: Path) -> Path:
    save_file(state, path.with_name("open_clip_model.safetensors"), {"format": "pt"})
    return path.with_name("open_clip_model.safetensors")


def as_hub_state_dict(state: dict[str, Tensor], path: Path) -> Path:
    torch.save(state, path.with_name("open_clip_pytorch_model.bin"))
    return path.with_name("open_clip_pytorch_model.bin")


def as_legacy_state_dict(state: dict[str, Tensor], path: Path) -> Path:
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def as_distributed_training_checkpoint(state: dict[str, Tensor], path: Path) -> Path:
    wrapped = {"module." + name: tensor for name, tensor in state.items()}
    options = argparse.Namespace(lr=5e-4, model="ViT-B-32")
    torch.save({"epoch": 3, "name": "run", "state_dict": wrapped, "optimizer": {"state": {}}, "args": options}, path)
    return path


def as_openai_export(state: dict[str, Tensor], path: Path) -> Path:
    constants = {"input_resolution": torch.tensor(6), "context_length": torch.tensor(13), "vocab_size": torch.tensor(23)}
    torch.save(state | constants | {"logit_scale": state["logit_scale"].reshape(1)}, path)
    return path


def as_custom_text_clip(state: dict[str, Tensor], path: Path) -> Path:
    text = ("positional_embedding", "token_embedding", "transformer", "ln_final", "text_projection")
    torch.save({f"text.{name}" if name.startswith(text) else name: tensor for name, tensor in state.items()}, path)
    return path


@pytest.mark.parametrize(
    "write",
    [
        as_safetensors,
        as_hub_safetensors,
        as_state_dict,
        as_hub_state_dict,
        as_legacy_state_dict,
        as_distributed_training_checkpoint,
        as_openai_export,
        as_custom_text_clip,
    ],
)
def test_reads_every_kind_of_file_to_the_same_model(
    tmp_path: Path, state: dict[str, Tensor], write: Callable[[dict[str, Tensor], Path], Path]
) -> None:
    model = build(tmp_path, write(state, tmp_path / "weights.pt"))
    wanted = build_model(ModelConfig(clip=write_config(tmp_path, clip_config()), latent_space=None), seed=5)
    assert model.backbone_digest == wanted.backbone_digest == state_digest(state)
    tokens = random_tokens(3, 1)
    assert torch.equal(model.encode_text(tokens), wanted.encode_text(tokens))


def test_half_precision_files_are_read_as_float32(tmp_path: Path, state: dict[str, Tensor]) -> None:
    halves = {name: tensor.half() for name, tensor in state.items()}
    model = build(tmp_path, as_state_dict(halves, tmp_path / "weights.pt"))
    assert model.video.dtype == torch.float32
    assert model.backbone_digest == state_digest(halves)


class OpenaiArchive(nn.Module):
    """A program with its weights in OpenAI's layout: names of modules and tensors, sizes as buffers, float16 where theirs is."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for name, size in (("input_resolution", 6), ("context_length", 13), ("vocab_size", 23)):
            self.register_buffer(name, torch.tensor(size))
        for name, tensor in state.items():
            *folders, last = name.split(".")
            module: nn.Module = self
            for folder in folders:
                if folder not in dict(module.named_children()):
                    module.add_module(folder, nn.Module())
                module = module.get_submodule(folder)
            half = any(part in name for part in ("conv1", "attn", "mlp", "proj"))
            module.register_parameter(last, nn.Parameter(tensor.half() if half else tensor))

    def forward(self, image: Tensor) -> Tensor:
        return image * self.logit_scale.exp()


def test_openais_own_archive_is_read(tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "ViT.pt"
    torch.jit.script(OpenaiArchive(state)).save(archive)
    monkeypatch.setattr(backbone, "_openai_digests", lambda open_clip: frozenset({file_sha256(archive)}))
    model = build(tmp_path, archive)
    rounded = OpenaiArchive(state).state_dict()
    wanted = {name: rounded[name].float() for name in state}
    assert {tensor.dtype for tensor in rounded.values()} == {torch.float16, torch.float32, torch.int64}
    assert model.backbone_digest == state_digest(wanted)
    assert model.video.projection.weight.equal(wanted["visual.proj"].T)


class Dangerous:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, save: Callable[[object, Path], object]) -> None:
    weights = tmp_path / "weights.pt"
    save({"state_dict": Dangerous(tmp_path / "touched")}, weights)
    with pytest.raises(CheckpointError, match=r"weights\.pt hold pickled code and are not loaded") as refusal:
        build(tmp_path, weights)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "touched").exists()


def test_a_program_is_read_only_if_openai_published_it(tmp_path: Path) -> None:
    weights = tmp_path / "ViT.pt"
    torch.jit.script(nn.Linear(2, 3)).save(weights)
    with pytest.raises(CheckpointError, match="TorchScript program that OpenAI did not publish"):
        read_state_dict(weights)
    assert set(read_state_dict(weights, {file_sha256(weights)})) == {"weight", "bias"}


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x04K\x01.", b"PK\x03\x04 cut short"])
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_damaged_files_are_one_clear_line(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name) as refusal:
        read_state_dict(tmp_path / name)
    assert "\n" not in str(refusal.value)


def test_a_cut_file_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    for path in (as_safetensors(state, tmp_path / "weights"), as_state_dict(state, tmp_path / "weights.pt")):
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(CheckpointError, match="damaged"):
            read_state_dict(path)


def test_missing_files_and_other_contents_are_refused(tmp_path: Path) -> None:
    for name in ("absent.pt", "absent.safetensors"):
        with pytest.raises(CheckpointError, match="cannot read weights"):
            read_state_dict(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="no state dict of tensors"):
        read_state_dict(tmp_path / "list.pt")


def test_weights_of_another_model_are_refused_by_the_first_name(tmp_path: Path, state: dict[str, Tensor]) -> None:
    without = {name: tensor for name, tensor in state.items() if name != "visual.proj"}
    with pytest.raises(CheckpointError, match=r"1 missing, such as visual\.proj and 1 unknown, such as extra"):
        build(tmp_path, as_state_dict(without | {"extra": torch.zeros(1)}, tmp_path / "a.pt"))
    with pytest.raises(CheckpointError, match=r"visual\.proj is \[14, 7\], expected \[14, 11\]"):
        build(tmp_path, as_state_dict(state | {"visual.proj": torch.zeros(14, 7)}, tmp_path / "b.pt"))
    with pytest.raises(CheckpointError, match=r"visual\.proj holds NaN or infinity"):
        build(tmp_path, as_state_dict(state | {"visual.proj": torch.full((14, 11), torch.inf)}, tmp_path / "c.pt"))


def test_digest_depends_on_every_value_and_shape(state: dict[str, Tensor]) -> None:
    changed = {name: tensor.clone() for name, tensor in state.items()}
    changed["visual.conv1.weight"][0, 0, 0, 0] += 1e-6
    reshaped = state | {"visual.proj": state["visual.proj"].reshape(11, 14)}
    assert len({state_digest(state), state_digest(changed), state_digest(reshaped)}) == 3
    assert state_digest(dict(reversed(state.items()))) == state_digest(state)
