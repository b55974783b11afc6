"""Categories go by whole words, in any case and with any punctuation."""

import pytest

from dgl_scale.evaluation.caption_categories import CATEGORIES, caption_categories


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red star", ("short",)),
        ("First a red star, THEN a blue ring", ("medium", "time")),
        ("a man left of a dog", ("short", "place")),
        ("he stands behind her until she leaves", ("short", "time", "place")),
        ("the leftover thenar brightness of afternoons", ("short",)),
        ("one two three four five six seven", ("short",)),
        ("one two three four five six seven eight", ("medium",)),
        (" ".join(["word"] * 14), ("medium",)),
        (" ".join(["word"] * 15), ("long",)),
        ("", ("short",)),
        ("人 走 路", ("short",)),
    ],
)
def test_categories(caption: str, expected: tuple[str, ...]) -> None:
    assert caption_categories(caption) == expected
    assert set(expected) <= set(CATEGORIES)
