"""Content prints: equal content, equal print; what cannot be read is equal to itself alone."""

import functools

import pytest
import torch

from semantic_editing.core.prints.content import content_print


def rescale(multiplier):
    def patch(args):
        return args["cond"] * multiplier

    return patch


class Scale:
    def __init__(self, strength, image):
        self.strength, self.image = strength, image

    def apply(self, x):
        return x * self.strength


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a):
        self.a = a


def embeds(seed):
    return torch.randn(1, 8, generator=torch.Generator().manual_seed(seed))


def linear(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Linear(3, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: rescale(0.5 + n),
        lambda n: Scale(n, embeds(0)),
        lambda n: Scale(1, embeds(n)),
        lambda n: Scale(n, embeds(0)).apply,
        lambda n: functools.partial(rescale, n),
        lambda n: lambda x, by=n: x * by,
        lambda n: {"patches": {"attn1": [rescale(n)], "attn2": []}, 3: "a"},
        lambda n: linear(n),
        lambda n: (1.0, ("diff", (embeds(n),)), 1.0, None, None),
        lambda n: {1, 2, n + 5},
        lambda n: Slotted(n),
        lambda n: torch.float16 if n else torch.float32,
    ],
)
def test_equal_content_is_equal_and_other_content_is_not(make):
    assert content_print(make(0)) == content_print(make(0))
    assert content_print(make(0)) != content_print(make(1))


def test_what_cannot_be_read_is_equal_to_itself_alone():
    one, other = iter([1]), iter([1])
    generator = (n for n in range(3))
    assert content_print(generator) == content_print(generator)
    assert content_print(one) != content_print(other)


def test_functions_of_one_name_are_told_apart():
    def made(kind):
        return (lambda x: x * 2) if kind else (lambda x: x * 3)

    def nested(kind):
        return (lambda x: [y * 2 for y in x]) if kind else (lambda x: [y * 3 for y in x])

    for make in (made, nested):
        assert make(0).__qualname__ == make(1).__qualname__
        assert content_print(make(0)) != content_print(make(1)) and content_print(make(0)) == content_print(make(0))


def test_circles_end():
    holder = {"name": "a"}
    holder["itself"] = holder
    again = {"name": "a"}
    again["itself"] = again
    assert content_print(holder) == content_print(again)
