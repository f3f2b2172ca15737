"""JSON of strangers: read with a bound on its size and depth, and compared with a declared form.

A form is a function that is given a value and its place, and raises :class:`Unfit` where the value is not of that form.
What has passed can be used without further checks.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ..errors import EditingError

Form = Callable[[Any, str], None]

DEEPEST = 32  # objects and lists inside each other
LONGEST_TEXT = 2000  # characters of a name, a prompt, a sentence
LARGEST_WHOLE = 2**63 - 1
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # of a pair in UTF-16; no file or screen can take one alone


class Unfit(ValueError):
    """A value is not of its form; the message says where and what was wanted."""


def parse_json(text: str | bytes, form: Form, what: str, remedy: str = "save or download it again") -> Any:
    """The value in a JSON text, of the given form.

    Args:
        what: what holds it, for the message, e.g. "x.safetensors".

    Raises:
        EditingError: it is no JSON, nested deeper than :data:`DEEPEST`, holds whole numbers or characters that no
            program can keep, or is of another form.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EditingError(f"{what} holds damaged JSON; {remedy}.") from error
    try:
        _check_sound(value)
        form(value, "")
    except Unfit as error:
        raise EditingError(f"{what} is damaged: {error}; {remedy}.") from error
    return value


def _check_sound(value: Any) -> None:
    """Raise :class:`Unfit` for what JSON can say but no program should have to take. Walks without recursion."""
    level, depth = [value], 0
    while level:
        below: list[Any] = []
        for part in level:
            if isinstance(part, (dict, list)) and depth == DEEPEST:
                raise Unfit(f"it is nested more than {DEEPEST} deep")
            if isinstance(part, dict):
                below += part.keys()
                below += part.values()
            elif isinstance(part, list):
                below += part
            elif isinstance(part, str):
                if HALF_CHARACTER.search(part):
                    raise Unfit("it holds half a character")
            elif isinstance(part, int) and abs(part) > LARGEST_WHOLE:
                raise Unfit("it holds a whole number of more than 64 bits")
        level, depth = below, depth + 1


def facts(value: Any, where: str) -> None:
    """Any object: facts for people, which no program relies on."""
    if not isinstance(value, dict):
        raise Unfit(f"{_at(where)} is no object")


def flag(value: Any, where: str) -> None:
    """true or false."""
    if not isinstance(value, bool):
        raise Unfit(f"{_at(where)} is neither true nor false")


def whole(low: int, high: int) -> Form:
    """A whole number from ``low`` to ``high``."""

    def form(value: Any, where: str) -> None:
        if type(value) is not int or not low <= value <= high:
            raise Unfit(f"{_at(where)} is no whole number from {low} to {high}")

    return form


def number(low: float = -math.inf, high: float = math.inf) -> Form:
    """A finite number from ``low`` to ``high``."""

    def form(value: Any, where: str) -> None:
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            bounds = "" if math.isinf(low) and math.isinf(high) else f" from {low:g} to {high:g}"
            raise Unfit(f"{_at(where)} is no number{bounds}")

    return form


def text(longest: int = LONGEST_TEXT) -> Form:
    """A text of at most so many characters."""

    def form(value: Any, where: str) -> None:
        if not isinstance(value, str) or len(value) > longest:
            raise Unfit(f"{_at(where)} is no text of up to {longest} characters")

    return form


def digits(low: int, high: int) -> Form:
    """A text that writes a whole number from ``low`` to ``high``."""

    def form(value: Any, where: str) -> None:
        if not isinstance(value, str) or not re.fullmatch("[0-9]{1,12}", value) or not low <= int(value) <= high:
            raise Unfit(f"{_at(where)} does not write a whole number from {low} to {high}")

    return form


def one_of(values: Collection[Any]) -> Form:
    """One of some texts, numbers or null."""

    def form(value: Any, where: str) -> None:
        if not any(type(value) is type(known) and value == known for known in values):
            raise Unfit(f"{_at(where)} is not one of {', '.join(map(str, values))}")

    return form


def listed(form_of_each: Form, least: int, most: int) -> Form:
    """A list of ``least`` to ``most`` values of one form."""

    def form(value: Any, where: str) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            count = f"{least}" if least == most else f"{least} to {most}"
            raise Unfit(f"{_at(where)} is no list of {count} values")
        for index, part in enumerate(value):
            form_of_each(part, f"{where}[{index}]")

    return form


def mapped(form_of_each: Form, least: int, most: int, name: Form | None = None) -> Form:
    """An object of ``least`` to ``most`` values of one form, under any names or under names of the form ``name``."""

    def form(value: Any, where: str) -> None:
        if not isinstance(value, dict) or not least <= len(value) <= most:
            raise Unfit(f"{_at(where)} is no object of {least} to {most} entries")
        for key, part in value.items():
            (name or text())(key, f"a name in {where}")
            form_of_each(part, f"{where}.{key}"[:200])

    return form


def table(required: Mapping[str, Form], optional: Mapping[str, Form] | None = None) -> Form:
    """An object with fields of their own forms; fields of other names are let through and must not be used."""

    def form(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise Unfit(f"{_at(where)} is no object")
        for key, part in required.items():
            if key not in value:
                raise Unfit(f"{_at(where)} has no {key}")
            part(value[key], f"{where}.{key}")
        for key, part in (optional or {}).items():
            if key in value:
                part(value[key], f"{where}.{key}")

    return form


def either(*forms: Form) -> Form:
    """A value of one of several forms."""

    def form(value: Any, where: str) -> None:
        for number_of_form, part in enumerate(forms, start=1):
            try:
                return part(value, where)
            except Unfit:
                if number_of_form == len(forms):
                    raise

    return form


def maybe(form: Form) -> Form:
    """null, or a value of a form."""
    return either(one_of((None,)), form)


def only(value: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The entries of ``value`` under ``names``."""
    return {key: value[key] for key in names if key in value}


def _at(where: str) -> str:
    return f"its {where.lstrip('.')}" if where.strip(".") else "it"
