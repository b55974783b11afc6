"""Captions to token ids: CLIP's byte-pair encoding. A door of open_clip."""

import difflib
import json
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dgl_scale.errors import ConfigError, DataError
from dgl_scale.files import json_sha256, path_inside
from dgl_scale.torchvision_import import import_open_clip

# The longest entries of CLIP's vocabulary have 32 bytes, so no longer piece of a word can be needed for one more token.
_LONGEST_TOKEN_BYTES = 32


class Tokenizer:
    """Texts to int64 `[C, max_words]`: start token, at most `max_words - 2` tokens, end of text, zeros."""

    def __init__(self, bpe: Any, max_words: int):
        self.max_words = max_words
        self._bpe = bpe

    def __call__(self, texts: list[str]) -> Tensor:
        """The token ids of each text; any Unicode, any length, also none."""
        rows = [[self._bpe.sot_token_id, *self._encode(text), self._bpe.eot_token_id] for text in texts]
        padded = [row + [0] * (self.max_words - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.int64).reshape(len(texts), self.max_words)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the vocabulary, in its order, and of the number of positions: equal digests, equal tokens."""
        return json_sha256([list(self._bpe.encoder.items()), self.max_words])

    def pieces(self, tokens: Tensor) -> list[str]:
        """The text that each token id of `[L]` stands for, with the space behind it; start and end in angle brackets."""
        names = {self._bpe.sot_token_id: "‹start›", self._bpe.eot_token_id: "‹end›"}
        return [names.get(token) or self._bpe.decode([token]) for token in tokens.tolist()]

    def _encode(self, text: str) -> list[int]:
        """What `bpe.encode(text)[: max_words - 2]` gives, without encoding what is cut off.

        BPE takes quadratic time in the length of a word, and text without spaces is one word.
        """
        room = self.max_words - 2
        longest_word = _LONGEST_TOKEN_BYTES * self.max_words
        ids: list[int] = []
        for match in self._bpe.pat.finditer(self._clean(text)):
            word = "".join(self._bpe.byte_encoder[byte] for byte in match.group().encode("utf-8")[:longest_word])
            ids.extend(self._bpe.encoder[piece] for piece in self._bpe.bpe(word).split(" "))
            if len(ids) >= room:
                break
        return ids[:room]

    def _clean(self, text: str) -> str:
        """What `bpe.clean_fn` gives: repaired Unicode, resolved entities, single spaces, lower case."""
        # Printable ASCII without entities has nothing to repair, and looking for it takes as long as the rest of the encoding.
        if text.isascii() and text.isprintable() and "&" not in text:
            return " ".join(text.split()).lower()
        cleaned: str = self._bpe.clean_fn(text)
        return cleaned


def load_tokenizer(clip: str, max_words: int) -> Tokenizer:
    """The tokenizer of a CLIP for captions of `max_words` token positions.

    Args:
        clip: an open_clip model name, or the path of a model-config JSON file; its
            `text_cfg.tokenizer_kwargs.bpe_path`, if any, is relative to the file's folder and inside it.

    Raises:
        ConfigError: unknown name (the nearest ones are named), unreadable or wrong config file, a text tower
            that does not use CLIP's byte-pair encoding, or `max_words` beyond its context length.
    """
    open_clip = import_open_clip()
    text, folder = _text_config(open_clip, clip)
    foreign = text.get("hf_tokenizer_name") or text.get("hf_model_name")
    if foreign:
        raise ConfigError(f"model {clip} uses the tokenizer {foreign}; only CLIP's own byte-pair encoding is supported, choose a CLIP ViT")
    context_length = int(text.get("context_length", 77))
    if max_words > context_length:
        raise ConfigError(f"max_words {max_words} is more than the {context_length} text positions of {clip}; use at most {context_length}")
    bpe = _load_bpe(open_clip, clip, text.get("tokenizer_kwargs") or {}, folder)
    if bpe.vocab_size > int(text.get("vocab_size", bpe.vocab_size)):
        raise ConfigError(f"the tokenizer of {clip} has {bpe.vocab_size} tokens, its text tower knows only {text['vocab_size']}")
    return Tokenizer(bpe, max_words)


def _text_config(open_clip: ModuleType, clip: str) -> tuple[dict[str, Any], Path]:
    path = Path(clip).expanduser()
    if path.suffix == ".json":
        return _text_config_of_file(path), path.parent
    config = open_clip.get_model_config(clip) if clip in open_clip.list_models() else None
    if config is None:
        near = difflib.get_close_matches(clip, open_clip.list_models(), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; open_clip.list_models() names them all"
        raise ConfigError(f"{clip!r} is no open_clip model and no model-config .json file{hint}")
    return config["text_cfg"], Path()


def _text_config_of_file(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ConfigError(f"cannot read the model config {path}: {reason}") from error
    text = content.get("text_cfg") if isinstance(content, dict) else None
    if not isinstance(text, dict):
        raise ConfigError(f"model config {path} has no section text_cfg; give an open_clip model config")
    return text


def _load_bpe(open_clip: ModuleType, clip: str, options: dict[str, Any], folder: Path) -> Any:
    unknown = sorted(set(options) - {"bpe_path"})
    if unknown:
        raise ConfigError(f"model config {clip}: tokenizer_kwargs.{unknown[0]} is not supported; only bpe_path is")
    if not options:
        return open_clip.SimpleTokenizer()
    try:
        return open_clip.SimpleTokenizer(str(path_inside(folder, str(options["bpe_path"]))))
    except (OSError, EOFError, UnicodeDecodeError, DataError) as error:
        raise ConfigError(f"model config {clip}: cannot use bpe_path {options['bpe_path']}: {error}") from error
