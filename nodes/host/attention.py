"""Attention control in ComfyUI: handing the U-Net's attention calls to a ``core.attention.site.AttentionControl``.

The route is ``transformer_options["optimized_attention_override"]``, which every attention call of the network passes
through. It is installed by a DIFFUSION_MODEL wrapper on a copy of the options, so that it lives for one forward of the
U-Net and ControlNets keep their own attention. An override that was there already runs where the control does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import comfy.model_patcher
import comfy.patcher_extension
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from torch import Tensor

from ...core.attention.features import features_shown
from ...core.attention.site import Attend, AttentionControl, Kind, Site
from ...core.errors import EditingError
from .features import feature_sites
from .gradients import scale_gradient

BLOCKS: dict[str, Literal["down", "mid", "up"]] = {"input": "down", "middle": "mid", "output": "up"}
#: (block name, block number, transformer block in it), the host's address of an attention layer.
Address = tuple[str, int, int]
WRAPPER_KEY = "semantic_editing"
#: The host's names of the two attentions of a transformer block, among the patches that replace one whole.
ATTENTIONS: dict[Kind, str] = {"self": "attn1", "cross": "attn2"}


def site_table(network: Any) -> dict[Address, int]:
    """Running number of every transformer block of a U-Net in network order; each has one self- and one
    cross-attention.

    Raises:
        EditingError: a network without cross-attention (DiT and flow models attend jointly).
    """
    table: dict[Address, int] = {}
    if hasattr(network, "input_blocks"):
        groups = (
            ("input", network.input_blocks),
            ("middle", [network.middle_block]),
            ("output", network.output_blocks),
        )
        for name, blocks in groups:
            for number, block in enumerate(blocks):
                for layer in block if block is not None else ():
                    if isinstance(layer, SpatialTransformer):
                        for index in range(len(layer.transformer_blocks)):
                            table[name, number, index] = len(table)
    if not table:
        raise EditingError(
            "This model has no cross-attention layers to steer; use an SD 1.x, SD 2.x or SDXL checkpoint, "
            "or a node that does not guide attention."
        )
    return table


def with_control(
    model_options: dict[str, Any],
    network: Any,
    control: AttentionControl,
    factor: float = 1.0,
    numbers: Sequence[int] | None = None,
) -> dict[str, Any]:
    """A copy of ``model_options`` under which one evaluation of ``network`` shows its attention to ``control``.

    ``factor`` is how much larger than true ones the gradients inside the network are; the control sees true ones.
    ``numbers`` names the branch of each conditioning of the host's call, where it is not the position in that call. A
    control whose ``kinds`` says so looks at one kind of attention only.

    Raises:
        EditingError: no cross-attention, or (at the evaluation) another pack replaced an attention whole, so that no
            map ever forms.
    """
    table = site_table(network)
    kinds: Sequence[Kind] = getattr(control, "kinds", ("cross",))

    def wrapper(
        executor: Any, x: Tensor, timesteps: Any, context: Any, y: Any, residuals: Any, options: Any, **rest: Any
    ) -> Any:
        options = dict(options)
        whole = {kind: options.get("patches_replace", {}).get(name, {}) for kind, name in ATTENTIONS.items()}
        for kind in kinds:
            if any(address in whole[kind] or address[:2] in whole[kind] for address in table):
                raise EditingError(
                    f"Another node replaced the model's {kind}-attention (IP-Adapter does); wire the model from before "
                    "that node."
                )
        override = _Override(control, table, context.shape[1], options.get("optimized_attention_override"), factor)
        override.numbers, override.replaced = numbers, {kind: set(whole[kind]) for kind in whole}
        options["optimized_attention_override"] = override
        with features_shown(feature_sites(network, override.branches(options)), control):
            return executor(x, timesteps, context, y, residuals, options, **rest)

    changed = comfy.model_patcher.create_model_options_clone(model_options)
    kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    comfy.patcher_extension.add_wrapper_with_key(kind, WRAPPER_KEY, wrapper, changed, is_model_options=True)
    return changed


class _Override:
    """The override for one forward of the network; remembers which layers it has seen to tell self from cross."""

    def __init__(
        self, control: AttentionControl, table: dict[Address, int], tokens: int, previous: Any | None, factor: float
    ):
        self.control, self.table, self.tokens, self.previous, self.factor = control, table, tokens, previous, factor
        self.seen: set[Address] = set()
        self.numbers: Sequence[int] | None = None
        self.replaced: dict[Kind, set[Any]] = {}

    def __call__(
        self, function: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, **options: Any
    ) -> Any:
        plain = function if self.previous is None else partial(self.previous, function)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            rows, _, queries, _ = q.shape
            joined = (part.transpose(1, 2).reshape(rows, part.shape[2], -1) for part in (q, k, v))
            made: Tensor = plain(*joined, heads, mask=None, **options)
            return made.view(rows, queries, heads, -1).transpose(1, 2)

        site = self._site(q, k, heads, options.get("transformer_options") or {}, attend)
        if site is not None and mask is None and self.control.wants(site):
            rows, queries, width = q.shape
            # True gradients would underflow in fp16; where none are taken, a control keeps the network's own numbers.
            exact = torch.float32 if self.factor != 1.0 and q.requires_grad else q.dtype
            split = [
                scale_gradient(t, self.factor).to(exact).view(rows, -1, heads, width // heads).transpose(1, 2)
                for t in (q, k, v)
            ]
            out = scale_gradient(self.control(*split, site).to(exact), 1 / self.factor)
            return out.to(q.dtype).transpose(1, 2).reshape(rows, queries, width)
        return plain(q, k, v, heads, mask=mask, **options)

    def branches(self, options: dict[str, Any]) -> tuple[int, ...]:
        """See :class:`Site`."""
        positions = tuple(options.get("cond_or_uncond", (0,)))
        return positions if self.numbers is None else tuple(self.numbers[position] for position in positions)

    def _site(self, q: Tensor, k: Tensor, heads: int, options: dict[str, Any], attend: Attend) -> Site | None:
        block = options.get("block", ("", -1))
        address = (block[0], block[1], options.get("block_index", 0))
        if address not in self.table:
            return None
        # As many text tokens as pixels (a 7x11 grid), or tokens that another pack added to either attention or has in
        # its own: then the first call of a transformer block is its self-attention, unless that was replaced.
        replaced = [kind for kind, places in self.replaced.items() if not places.isdisjoint((address, address[:2]))]
        added = "cross" in replaced or k.shape[1] not in (q.shape[1], self.tokens)
        ambiguous = added or k.shape[1] == q.shape[1] == self.tokens
        second = address in self.seen or "self" in replaced
        cross = second if ambiguous else k.shape[1] == self.tokens
        self.seen.add(address)
        height, width = options["activations_shape"][-2:]
        kind: Kind = "cross" if cross else "self"
        branches = self.branches(options)
        return Site(BLOCKS[address[0]], self.table[address], (height, width), heads, kind, branches, attend)
