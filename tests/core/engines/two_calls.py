"""The engines written naively for tests: source, target and negative evaluated one after another by explicit attention.

From the papers; attention processors written out here, nothing shared with the code under test.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Explicit:
    """Attention by explicit softmax, remembering or replacing by a function of (name, q, k, v, maps)."""

    def __init__(self, name, rule):
        self.name, self.rule = name, rule

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            projection(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projection, states in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        out = self.rule(self.name, q, k, v)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def softmax_maps(q: Tensor, k: Tensor) -> Tensor:
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) / q.shape[-1] ** 0.5
    weights = scores.exp()
    return weights / weights.sum(-1, keepdim=True)


def evaluated(denoiser, x, sigma, cond, rule=None, feature=None):
    """One conditioning alone; ``rule`` stands in for every attention, ``feature`` is (module name, tensor)."""
    unet = denoiser.unet
    previous = dict(unet.attn_processors)
    handles = []
    if rule is not None:
        unet.set_attn_processor({name: Explicit(name.removesuffix(".processor"), rule) for name in previous})
    if feature is not None:
        name, put = feature
        handles.append(unet.get_submodule(name).register_forward_hook(lambda _, __, out: put(out)))
    try:
        with torch.no_grad():
            return denoiser(x, sigma, cond)
    finally:
        unet.set_attn_processor(previous)
        for handle in handles:
            handle.remove()


def remembered(denoiser, x, sigma, cond, feature=None):
    """``(prediction, {layer: (q, k, v)}, output of the feature's module)`` of the source."""
    seen, features = {}, []

    def rule(name, q, k, v):
        seen[name] = (q, k, v)
        return softmax_maps(q, k) @ v

    put = None if feature is None else (feature, lambda out: features.append(out))
    made = evaluated(denoiser, x, sigma, cond, rule, put)
    return made, seen, features[0] if features else None


def edited(denoiser, inversion, source, target, uncond, cfg, at_step, shift=False, feature=None):
    """The edit's clean latent. ``at_step(step)`` is ``(target's rule maker, negative's, feature on)``, where a maker
    takes the source's (q, k, v) by layer and makes a rule."""
    levels, x = inversion.sigmas.tolist(), inversion.latents[-1]
    steps = len(levels) - 1
    for step in range(steps):
        level = steps - step
        sigma, lower = levels[level], levels[level - 1]
        z = inversion.latents[level]
        for_target, for_negative, features = at_step(step)
        known, seen, put = remembered(denoiser, z, sigma, source, feature)
        hook = (feature, lambda out, put=put: put) if features else None
        conditional = evaluated(denoiser, x, sigma, target, for_target and for_target(seen), hook)
        guided = conditional
        if cfg != 1.0:
            negative = evaluated(denoiser, x, sigma, uncond, for_negative and for_negative(seen), hook)
            guided = cfg * conditional + (1 - cfg) * negative
        x = x + (x - guided) * (lower - sigma) / sigma
        if shift:
            x = x + inversion.latents[level - 1] - (z + (z - known) * (lower - sigma) / sigma)
    return x
