"""Running out of memory, said so that a person knows which widget to turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management as model_management
import torch

#: What allocators without an exception type of their own say (CPU, MPS, DirectML).
PHRASES = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is an allocator's, by the host's own judgement or by its words."""
    judge = vars(model_management).get("is_oom")
    if judge is not None:
        known = judge(error)
    else:  # an older host
        known = isinstance(error, model_management.OOM_EXCEPTION) and model_management.OOM_EXCEPTION is not Exception
    return known or (isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in PHRASES))


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Raise an out-of-memory error anew with ``advice`` in front, still of the type for which the host frees memory."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise model_management.OOM_EXCEPTION(f"Out of memory; {advice}. ({reason})") from error


def free_main_memory() -> int:
    """Bytes of main memory that nobody uses, as the host counts them."""
    return int(model_management.get_free_memory(torch.device("cpu")))
