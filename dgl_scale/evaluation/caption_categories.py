"""Categories of captions, as far as their words tell: how long one is, and whether it depends on order in time or in space."""

import re

_SHORT, _MEDIUM = 7, 14
CATEGORIES = {
    "short": f"up to {_SHORT} words",
    "medium": f"{_SHORT + 1} to {_MEDIUM} words",
    "long": f"{_MEDIUM + 1} words or more",
    "time": "before, after, then …",
    "place": "left, right, above …",
}
"""Each category and what it means."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_ABOUT = {
    "time": re.compile(r"\b(after|afterwards|before|during|finally|first|later|meanwhile|next|subsequently|then|until|when|while)\b"),
    "place": re.compile(r"\b(above|behind|below|beneath|beside|between|bottom|front|left|over|right|top|under|underneath)\b"),
}


def caption_categories(caption: str) -> tuple[str, ...]:
    """The categories of a caption, in the order of `CATEGORIES`: one by its length, and `time` and `place` where its words tell."""
    lowered = caption.lower()
    count = len(_WORD.findall(lowered))
    length = "short" if count <= _SHORT else "medium" if count <= _MEDIUM else "long"
    return length, *(name for name, word in _ABOUT.items() if word.search(lowered))
