import gzip
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgl_scale.data.tokenizer import load_tokenizer
from dgl_scale.errors import ConfigError
from dgl_scale.torchvision_import import import_open_clip

TEXTS = [
    "a red star left of a blue ring",
    "",
    "   ",
    "A man's dog &amp; a woman, 12 o'clock!!!",
    "一只红色的星星在蓝色的环左边",
    "🐶🎉 first a dog then a party 👨‍👩‍👧",
    "x" * 500,
    "ends " * 40,
    "<end_of_text> a <start_of_text> b",
    "naïve café \x00\t\n mojibake â€œquotesâ€\x9d",
]


@pytest.fixture(scope="module")
def open_clip():
    return import_open_clip()


@pytest.mark.parametrize("max_words", [3, 8, 32, 77])
def test_tokens_are_open_clips_own(open_clip, max_words):
    reference = open_clip.get_tokenizer("ViT-B-32")(TEXTS, context_length=max_words)
    tokens = load_tokenizer("ViT-B-32", max_words)(TEXTS)
    assert tokens.dtype == torch.int64 and torch.equal(tokens, reference)


def test_any_ascii_is_cleaned_as_open_clip_cleans(open_clip):
    reference, tokenizer = open_clip.get_tokenizer("ViT-B-32"), load_tokenizer("ViT-B-32", 32)

    @settings(max_examples=300, deadline=None)
    @given(st.text(st.characters(max_codepoint=127), max_size=40))
    def check(text):
        assert torch.equal(tokenizer([text]), reference([text], context_length=32))

    check()


def test_start_words_end_and_padding():
    tokens = load_tokenizer("ViT-B-32", 6)(["a dog", "a b c d e f g h"])
    assert tokens[0].tolist() == [49406, 320, 1929, 49407, 0, 0]
    assert tokens[1, 0] == 49406 and tokens[1, -1] == 49407 and (tokens[1] == 49407).sum() == 1


def test_no_texts_give_no_rows():
    assert load_tokenizer("ViT-B-32", 6)([]).shape == (0, 6)


@pytest.mark.parametrize("text", ["狗和猫在" * 2500, "ab" * 5000, "🐶" * 10_000, "word " * 2000, "!" * 10_000])
def test_ten_thousand_characters_are_cut_as_open_clip_cuts(open_clip, text):
    reference = open_clip.get_tokenizer("ViT-B-32")([text], context_length=32)
    assert torch.equal(load_tokenizer("ViT-B-32", 32)([text]), reference)


def write_config(folder, **text):
    path = folder / "tiny.json"
    config = {"embed_dim": 16, "vision_cfg": {}, "text_cfg": {"context_length": 20, "vocab_size": 49408, **text}}
    path.write_text(json.dumps(config))
    return str(path)


def write_merges(folder, merges, name="merges.txt.gz"):
    with gzip.open(folder / name, "wt", encoding="utf-8") as stream:
        stream.write("#version\n" + "".join(f"{merge}\n" for merge in merges))


def test_a_config_file_brings_its_own_merges(tmp_path):
    write_merges(tmp_path, ["a b</w>"])
    tokens = load_tokenizer(write_config(tmp_path, tokenizer_kwargs={"bpe_path": "merges.txt.gz"}), 5)(["ab b"])
    # 512 byte tokens, one merge (and the empty last line), then start and end.
    start, end = tokens[0, 0].item(), tokens[0, 3].item()
    assert tokens[0].tolist() == [start, 512, 256 + ord("b") - ord("!"), end, 0] and end == start + 1


def test_a_config_file_without_merges_uses_clips(tmp_path):
    assert torch.equal(load_tokenizer(write_config(tmp_path), 20)(TEXTS), load_tokenizer("ViT-B-32", 20)(TEXTS))


def test_max_words_beyond_the_context_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="max_words 78 is more than the 77 text positions of ViT-B-32; use at most 77"):
        load_tokenizer("ViT-B-32", 78)
    with pytest.raises(ConfigError, match="max_words 21 is more than the 20 text positions"):
        load_tokenizer(write_config(tmp_path), 21)


def test_unknown_names_get_the_nearest_ones():
    with pytest.raises(ConfigError, match=r"'ViT-B-23' is no open_clip model .*did you mean .*ViT-B-32"):
        load_tokenizer("ViT-B-23", 32)
    with pytest.raises(ConfigError, match=r"'zzz' is no open_clip model and no model-config .json file"):
        load_tokenizer("zzz", 32)


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "roberta-ViT-B-32"])
def test_foreign_tokenizers_are_refused(name):
    with pytest.raises(ConfigError, match=f"model {name} uses the tokenizer .*only CLIP's own"):
        load_tokenizer(name, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bpe_path": "../merges.txt.gz"}, "leads out of"),
        ({"bpe_path": "/etc/passwd"}, "leads out of"),
        ({"bpe_path": "absent.gz"}, "cannot use bpe_path absent.gz"),
        ({"bpe_path": "tiny.json"}, "cannot use bpe_path tiny.json"),
        ({"bpe_path": 3}, "cannot use bpe_path 3"),
        ({"clean": "lower"}, "tokenizer_kwargs.clean is not supported"),
    ],
)
def test_bad_merges_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_tokenizer(write_config(tmp_path, tokenizer_kwargs=options), 10)
    assert "\n" not in str(error.value)


def test_config_files_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the model config .*absent.json: No such file"):
        load_tokenizer(str(tmp_path / "absent.json"), 10)
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(ConfigError, match=r"cannot read the model config .*text.json"):
        load_tokenizer(str(tmp_path / "text.json"), 10)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ConfigError, match="has no section text_cfg"):
        load_tokenizer(str(tmp_path / "list.json"), 10)


def test_a_text_tower_too_small_for_the_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has 49408 tokens, its text tower knows only 100"):
        load_tokenizer(write_config(tmp_path, vocab_size=100), 10)
