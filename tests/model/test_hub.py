"""Prompts files on a model hub: our part of its protocol, spoken by `huggingface_hub` to a server on loopback."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from dgl_scale.config import ModelConfig
from dgl_scale.model import build_model, save_prompts
from dgl_scale.prompts import main
from tests.model.hub_server import TOKEN, Hub, serving
from tests.reference.tiny_clip import clip_config, write_config

FACTS = {"run": "mine <b>", "dataset": "msrvtt", "step": 150, "validation": {"text_to_video/R@1": 45.81, "video_to_text/R@1": 43.5}}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    model = build_model(ModelConfig(clip=write_config(tmp_path, clip_config()), latent_space="linear", num_frames=3))
    save_prompts(model, tmp_path / "mine.safetensors", FACTS)
    return tmp_path / "mine.safetensors"


def test_what_is_pushed_is_pulled(hub: Hub, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(prompts), "me/mine", "--private", "--license", "mit"]) == 0
    assert capsys.readouterr().out.startswith(f"{hub.url}/me/mine/commit/")
    files = hub.repositories["me/mine"]
    assert files["prompts.safetensors"] == prompts.read_bytes()
    assert ModelCard(files["README.md"].decode()).data.license == "mit"
    assert (hub.private, hub.messages) == ({"me/mine"}, ["Prompts of step 150"])

    assert main(["pull", "me/mine", "--output", str(tmp_path / "pulled.safetensors")]) == 0
    assert (tmp_path / "pulled.safetensors").read_bytes() == prompts.read_bytes()


def test_a_card_that_is_there_stays(hub: Hub, prompts: Path) -> None:
    hub.repositories["me/mine"] = {"README.md": b"written by hand"}
    assert main(["push", str(prompts), "me/mine"]) == 0
    assert hub.repositories["me/mine"]["README.md"] == b"written by hand"


def test_the_card_keeps_the_conventions(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", str(prompts), "--base-model", "timm/some_clip"]) == 0
    text = capsys.readouterr().out
    card = ModelCard(text)
    assert (card.data.library_name, card.data.base_model, card.data.license) == ("dgl_scale", "timm/some_clip", None)
    results = {result.metric_name: (result.metric_value, result.dataset_name) for result in card.data.eval_results}
    assert results == {"text_to_video/R@1": (45.81, "msrvtt"), "video_to_text/R@1": (43.5, "msrvtt")}
    assert r"# mine \<b\>" in text and "<b>" not in card.text.replace(r"\<b\>", "")
    assert str(tmp_path) not in text
    assert "ModelConfig(clip='clip.json', latent_space='linear', num_frames=3)" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pull", "me/none"], "me/none: no such repository, or no right to it; set HF_TOKEN, or log in with `hf auth login`"),
        (["pull", "me/empty"], "me/empty has no prompts.safetensors"),
        (["pull", "me/empty", "--revision", "v2"], "me/empty has no such revision"),
        (["pull", "me/other"], "are damaged or no safetensors"),
        (["pull", "not a name"], "'not a name' names no repository; give OWNER/NAME"),
        (["push", "{prompts}", "me/mine"], "me/mine: the hub answers 401; set HF_TOKEN, or log in with `hf auth login`"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    words: list[str],
    message: str,
    hub: Hub,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    hub.repositories |= {"me/empty": {}, "me/other": {"prompts.safetensors": b"something else"}}
    assert main([word.format(prompts=prompts) for word in words]) in {1, 2}
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "prompts.safetensors").exists()


def test_a_hub_that_is_not_there_is_one_line(hub: Hub, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.shutdown()
    hub.server_close()
    assert main(["push", str(prompts), "me/mine"]) == 1
    error = capsys.readouterr().err
    assert "me/mine: the hub cannot be reached" in error and len(error.splitlines()) == 1
