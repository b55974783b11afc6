"""Queries with what each evaluation found for them, as one JSON value that the page's script draws.

A clip is kept once, as a small film strip, whatever the number of queries and evaluations that show it.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dgl_scale.data.index import SplitIndex, load_split
from dgl_scale.data.reader import SampleReader
from dgl_scale.errors import DataError, DglError
from dgl_scale.evaluation.caption_categories import caption_categories
from dgl_scale.evaluation.film_strip import FINE, SMALL, StripFormat, film_strip
from dgl_scale.evaluation.query_set import Evaluated, QuerySet
from dgl_scale.evaluation.retrieval import DIRECTIONS
from dgl_scale.storage.urls import is_url

MAX_QUERIES = 1000
MAX_STRIP_BYTES = 6_500_000
_TOP = 5
_MANY_CLIPS = 300

Row = Mapping[str, Any]


def query_gallery(queries: QuerySet, *, max_queries: int = MAX_QUERIES, max_bytes: int = MAX_STRIP_BYTES) -> dict[str, Any]:
    """The queries of a set with the top five of each evaluation.

    Args:
        max_queries: text-to-video queries at most; which ones, `notes` says.
        max_bytes: of all film strips in base64; fewer queries are shown where theirs would take more.

    Returns:
        `name`; `notes`, what a reader must know; `evaluations`, names; `baseline` and `shown`, which of them; `captions`; `clips`, each
        `[key, first caption, strip or null, width, height]`; and for each direction `queries` `[caption, right clip, categories]` and
        `answers` `[evaluation][query]` `[rank, score of the right one, [[candidate, score, is right]]]`. Captions and clips are given by
        number; candidates are clips for a caption and captions for a clip.

    Raises:
        DataError: a ranks.parquet is missing or damaged.
    """
    to_video, to_text = (queries.answers[direction] for direction in DIRECTIONS)
    shown = queries.shown
    order = _spread_over_ranks(to_video[shown])[:max_queries]
    strips = _Strips([queries.evaluations[shown], *queries.evaluations], len(_keys_of(to_video, order)), max_bytes)
    chosen = strips.take_while_they_fit((i, _keys_of(to_video, [i])) for i in order)
    of_clips = [i for i, row in enumerate(to_text[shown]) if row["key"] in strips.known]
    captions, clips, first = _Numbered(), _Numbered(), _first_captions(to_video[shown])
    content = {
        "name": queries.label,
        "notes": [*_selection_note(queries, len(chosen)), *strips.notes],
        "evaluations": [one.name for one in queries.evaluations],
        "baseline": queries.baseline,
        "shown": shown,
        DIRECTIONS[0]: _direction(to_video, sorted(chosen), captions, clips, first),
        DIRECTIONS[1]: _direction(to_text, of_clips, captions, clips, first),
    }
    return {**content, "captions": captions.values, "clips": [[key, first.get(key, ""), *strips.known[key]] for key in clips.values]}


class _Numbered:
    """Texts in the order in which they are first asked for."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}

    @property
    def values(self) -> list[str]:
        return list(self._number)

    def __getitem__(self, text: str) -> int:
        return self._number.setdefault(text, len(self._number))


class _Strips:
    """Film strips in base64 by key, each made once, from the shards of the first evaluation whose shards are there.

    Where there are none, so are no strips, and `notes` says why.
    """

    def __init__(self, evaluations: Sequence[Evaluated], num_clips: int, max_bytes: int) -> None:
        self.known: dict[str, tuple[str | None, int, int]] = {}
        self._form: StripFormat = FINE if num_clips <= _MANY_CLIPS else SMALL
        self._left = max_bytes
        self._lost: list[str] = []
        self._reader: SampleReader | None = None
        self._position: dict[str, int] = {}
        self._no_shards = ""
        for evaluated in evaluations:
            try:
                index = _load_evaluated_split(evaluated)
            except DglError as error:
                self._no_shards = self._no_shards or str(error)
                continue
            self._position = {str(key): i for i, key in enumerate(index.keys)}
            self._reader = SampleReader(index)
            break

    @property
    def notes(self) -> list[str]:
        """Why clips are not shown."""
        if self._reader is None:
            return [f"No clips are shown: {self._no_shards}."]
        return [f"{len(self._lost):,} clips are not shown. The first: {self._lost[0]}."] if self._lost else []

    def take_while_they_fit(self, queries: Iterable[tuple[int, Sequence[str]]]) -> list[int]:
        """The first of the queries, each with the keys of its clips, whose strips fit; always one."""
        taken: list[int] = []
        for number, keys in queries:
            fresh = {key: self._make(key) for key in keys if key not in self.known}
            needed = sum(len(strip or "") for strip, _, _ in fresh.values())
            if taken and needed > self._left:
                break
            self._left -= needed
            self.known.update(fresh)
            taken.append(number)
        return taken

    def _make(self, key: str) -> tuple[str | None, int, int]:
        if self._reader is None:
            return None, 0, 0
        try:
            strip = film_strip(self._reader.read(self._position[key]).frames, self._form)
        except (DglError, KeyError, OSError) as error:
            self._lost.append(f"the shards have no sample {key}" if isinstance(error, KeyError) else f"{key}: {error}")
            return None, 0, 0
        return base64.b64encode(strip.content).decode("ascii"), strip.width, strip.height


def _load_evaluated_split(evaluated: Evaluated) -> SplitIndex:
    folder = evaluated.results["split_folder"]
    if not is_url(folder) and not Path(folder).is_dir():
        raise DataError(f"the shards are no longer at {folder}")
    # Each sample is read once, so nothing is gained by keeping whole shards of a remote split.
    index = load_split(folder, cache=None)
    if index.digest != evaluated.results["shards"]:
        raise DataError(f"the shards at {folder} have changed since the evaluation")
    return index


def _spread_over_ranks(rows: Sequence[Row]) -> list[int]:
    """All row numbers, so that every beginning of the list is spread over the ranks: the worst, then by halves from the best."""
    by_rank = sorted(range(len(rows)), key=lambda i: float(rows[i]["rank"]))
    bits = max(1, len(rows).bit_length())
    places = sorted(range(len(rows)), key=lambda place: int(f"{place:0{bits}b}"[::-1], 2))
    return list(dict.fromkeys(by_rank[place] for place in [len(rows) - 1, *places]))


def _keys_of(answers: Sequence[Sequence[Row]], numbers: Iterable[int]) -> list[str]:
    """Keys of the right clip and of the top five of each evaluation, each once."""
    keys: dict[str, None] = {}
    for i in numbers:
        for rows in answers:
            keys.update(dict.fromkeys([rows[i]["key"], *rows[i]["top_keys"][:_TOP]]))
    return list(keys)


def _first_captions(rows: Iterable[Row]) -> dict[str, str]:
    """The first caption of each video, by key."""
    captions: dict[str, str] = {}
    for row in rows:
        captions.setdefault(row["key"], row["caption"])
    return captions


def _direction(
    answers: Sequence[Sequence[Row]], numbers: Sequence[int], captions: _Numbered, clips: _Numbered, first: Mapping[str, str]
) -> dict[str, Any]:
    def answer(row: Row) -> list[Any]:
        # A caption is searched among clips, a clip among captions.
        table, names = (clips, row["top_keys"]) if row["caption"] is not None else (captions, row["top_captions"])
        top = list(zip(names, row["top_keys"], row["top_scores"], strict=True))[:_TOP]
        return [row["rank"], round(row["score"], 3), [[table[name], round(score, 3), int(key == row["key"])] for name, key, score in top]]

    def query(row: Row) -> list[Any]:
        caption = row["caption"] if row["caption"] is not None else first[row["key"]]
        return [captions[caption], clips[row["key"]], caption_categories(caption)]

    queries = [query(answers[0][i]) for i in numbers]
    return {"queries": queries, "answers": [[answer(rows[i]) for i in numbers] for rows in answers]}


def _selection_note(queries: QuerySet, count: int) -> list[str]:
    total = len(queries.answers[DIRECTIONS[0]][0])
    if count == total:
        return []
    name = queries.evaluations[queries.shown].name
    return [
        f"{count:,} of {total:,} captions are here, chosen by rule and not by hand: at even distances in the order of their rank by {name}."
    ]
