"""tests/pairs.py keeps its promise."""

import itertools

from semantic_editing.tests.pairs import pairs


def test_all_pairs_occur_in_fewer_cases():
    choices = ["a", "b", "c"], [(1, 2), (3, 4)], [0.5, None, "x"]
    cases = pairs(*choices)
    for (i, first), (j, second) in itertools.combinations(enumerate(choices), 2):
        assert {(case[i], case[j]) for case in cases} == set(itertools.product(first, second))
    assert len(cases) < 3 * 2 * 3 and cases == pairs(*choices)
    assert pairs([1, 2], "ab") == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
