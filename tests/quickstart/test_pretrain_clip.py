"""The script that made the small CLIP, and the files it made."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dgl_scale.quickstart.pretrain_clip as pretrain_clip
from dgl_scale.quickstart.pretrain_clip import (
    CONFIG_NAME,
    FINAL_LOGIT_SCALE,
    MERGES_NAME,
    QUICK_GELU_FACTOR,
    WEIGHTS_NAME,
    QuickGELU,
    Recipe,
    build_trainable_clip,
    contrastive_loss,
    encode_images,
    encode_text,
    exchange_activation,
    learn_merges,
    learning_rate,
    logit_scale,
    measure_held_out,
    model_config,
    pretrain,
    render_batch,
    write_tokenizer,
)
from dgl_scale.quickstart.scenes import Mixture, grammar_words

SHIPPED = Path(pretrain_clip.__file__).parent / "clip"


@pytest.fixture(scope="module")
def shipped():
    config = json.loads((SHIPPED / CONFIG_NAME).read_text())
    model, tokenizer = build_trainable_clip(config, SHIPPED / MERGES_NAME)
    model.load_state_dict(load_file(SHIPPED / WEIGHTS_NAME))
    return model.eval(), tokenizer


def test_shipped_files_are_those_the_script_writes(tmp_path):
    config = model_config(write_tokenizer(tmp_path))
    assert json.loads((SHIPPED / CONFIG_NAME).read_text()) == config
    written, kept = ((folder / MERGES_NAME).read_bytes() for folder in (tmp_path, SHIPPED))
    assert gzip.decompress(written) == gzip.decompress(kept)
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 4_000_000


def test_shipped_weights_know_things_attributes_and_places(shipped):
    model, tokenizer = shipped
    assert model.logit_scale.item() == pytest.approx(FINAL_LOGIT_SCALE)
    with torch.no_grad():
        figures = measure_held_out(model, tokenizer, 600)
    assert figures["recall_at_1"] > 85 and figures["places"] > 88 and figures["colours"] > 97


def test_every_word_is_one_token_and_any_text_has_some(shipped):
    _, tokenizer = shipped
    assert all(len(tokenizer.encode(word)) == 1 for word in grammar_words())
    for text in ("", "a zebra", "红色的星星", "star ⭐ ring"):
        ids = tokenizer([text])[0]
        assert ids.max() == tokenizer.vocab_size - 1 and (ids >= 0).all()


def test_merges_are_learned_most_frequent_first():
    assert learn_merges(["aab", "aac", "aa"]) == [("a", "a"), ("a", "a</w>"), ("aa", "b</w>"), ("aa", "c</w>")]


def test_lean_encoders_give_the_models_own_features(shipped):
    model, tokenizer = shipped
    images, captions = render_batch(1, 2, 7, Mixture())
    with torch.no_grad():
        own_images = model.encode_image(pretrain_clip.normalise(images), normalize=True)
        torch.testing.assert_close(encode_images(model, images), own_images, atol=1e-5, rtol=1e-5)
        tokens = tokenizer(captions)
        torch.testing.assert_close(encode_text(model, tokens[:, :17]), model.encode_text(tokens, normalize=True), atol=1e-5, rtol=1e-5)


def test_exchanging_the_activation_leaves_the_function_alone(shipped):
    model, _ = shipped
    images, _ = render_batch(1, 2, 3, Mixture())
    with torch.no_grad():
        before = encode_images(model, images)
        exchange_activation(model, torch.nn.SiLU(), QUICK_GELU_FACTOR)
        during = encode_images(model, images)
        exchange_activation(model, QuickGELU(), 1 / QUICK_GELU_FACTOR)
    torch.testing.assert_close(during, before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encode_images(model, images), before, atol=1e-5, rtol=1e-5)


def test_loss_takes_equal_captions_as_right_answers():
    similarity = torch.tensor([[9.0, 9.0, 0.0], [9.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    two_right = contrastive_loss(similarity, ["x", "x", "y"])
    one_right = contrastive_loss(similarity, ["x", "z", "y"])
    assert two_right == pytest.approx(one_right.item(), abs=1e-6)
    wrong = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    assert contrastive_loss(wrong, ["x", "x", "y"]) > contrastive_loss(wrong, ["x", "z", "y"]) + 1


def test_schedules():
    first, second = Recipe(steps=200, order_steps=50).phases()
    assert learning_rate(0, first, 1.0) == pytest.approx(0.01) and learning_rate(100, first, 1.0) == 1.0
    assert learning_rate(199, first, 1.0) < 1e-3
    assert logit_scale(0, first) == pytest.approx(2.659, abs=1e-3) and logit_scale(100, first) == FINAL_LOGIT_SCALE
    assert logit_scale(0, second) == FINAL_LOGIT_SCALE and second.first_batch == 200


@pytest.mark.slow
def test_the_script_trains_and_a_phase_can_be_repeated(tmp_path):
    recipe = Recipe(steps=2, order_steps=2, batch_size=16, num_held_out=20, num_processes=1)
    pretrain(tmp_path, recipe)
    whole = (tmp_path / WEIGHTS_NAME).read_bytes()
    pretrain(tmp_path, Recipe(steps=2, order_steps=0, batch_size=16, num_held_out=20, num_processes=1))
    assert (tmp_path / WEIGHTS_NAME).read_bytes() != whole
    pretrain(tmp_path, recipe, first_phase=1)
    assert (tmp_path / WEIGHTS_NAME).read_bytes() == whole
