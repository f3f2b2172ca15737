"""Fewer cases than the whole product: every two values of different parameters still meet in one of them."""

import itertools


def pairs(*choices):
    """Cases, one value of each of ``choices``, in which all pairs of values of two parameters occur.

    The same choices give the same cases every time.

    ``pairs([1, 2], "ab", [True, False])`` has 4 cases where the product has 8.
    """
    names = [range(len(values)) for values in choices]
    open_pairs = {
        ((a, i), (b, j))
        for (a, first), (b, second) in itertools.combinations(enumerate(names), 2)
        for i in first
        for j in second
    }
    made = []
    while open_pairs:
        best = max(itertools.product(*names), key=lambda case: len(open_pairs & set(_met(case))))
        open_pairs -= set(_met(best))
        made.append(tuple(values[index] for values, index in zip(choices, best, strict=True)))
    return made


def _met(case):
    return itertools.combinations(enumerate(case), 2)
