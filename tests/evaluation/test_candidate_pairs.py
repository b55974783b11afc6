"""Keys hold what was packed and sort as they say; pairs that wait come back once."""

import numpy as np

from dgl_scale.evaluation.candidate_pairs import MOST_CANDIDATES, MOST_QUERIES, Pairs, pack, unpack


def test_keys_sort_by_query_falling_score_and_candidate() -> None:
    generator = np.random.default_rng(0)
    query, candidate = generator.choice([0, 1, MOST_QUERIES - 1], 200), generator.integers(0, MOST_CANDIDATES, 200)
    score = generator.choice(np.array([-1.5, -1e-30, 0.0, 1e-30, 0.25, 1.0], np.float32), 200)
    keys = pack(query, score, candidate)
    assert [list(a) for a in unpack(keys)] == [list(query), list(score), list(candidate)]
    assert list(np.argsort(keys)) == list(np.lexsort((candidate, -score, query)))


def test_pairs_come_back_once_in_order() -> None:
    pairs = Pairs()
    for start in (0, 3):
        pairs.add(np.arange(start, start + 3), np.arange(3), np.full(3, start, np.float32))
    assert pairs.size == 6
    query, candidate, score = pairs.take_all()
    assert (list(query), list(candidate), list(score)) == ([0, 1, 2, 3, 4, 5], [0, 1, 2] * 2, [0.0] * 3 + [3.0] * 3)
    assert pairs.size == 0
    assert [len(column) for column in pairs.take_all()] == [0, 0, 0]
