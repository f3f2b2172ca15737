"""pix2pix-zero's editing written naively for tests: two passes, unit-variance latents, maps of all steps stored.

From the paper's Algorithm 1 and from what its published code does; maps come from hooks on the projections, so nothing
here shares a line with the code under test.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semantic_editing.core.diffusers.denoiser import TextCond


class TwoPass:
    """A raw network with a noise table, seen as pix2pix-zero's pipeline sees it."""

    def __init__(self, unet, scheduler, timesteps):
        self.unet = unet
        self.v_prediction = scheduler.config.prediction_type == "v_prediction"
        self.alphas = scheduler.alphas_cumprod.double()
        self.timesteps = list(timesteps)  # descending; the last level of the grid included

    def epsilon(self, x: Tensor, t: int, cond) -> tuple[Tensor, list[Tensor]]:
        """Noise prediction and the cross-attention maps ``[B, heads, N, M]`` of one evaluation."""
        maps, projected, handles = [], {}, []

        def hook(key, heads):
            def keep(_, __, out):
                split = out.unflatten(-1, (heads, -1)).transpose(1, 2)
                if key == "q":
                    projected["q"] = split
                else:
                    maps.append((projected["q"] @ split.transpose(-1, -2) / split.shape[-1] ** 0.5).softmax(-1))

            return keep

        for name, module in self.unet.named_modules():
            if name.endswith("attn2"):
                handles += [module.to_q.register_forward_hook(hook("q", module.heads))]
                handles += [module.to_k.register_forward_hook(hook("k", module.heads))]
        embeds, added = cond, None
        if isinstance(cond, TextCond):
            height, width = x.shape[-2] * 8.0, x.shape[-1] * 8.0
            ids = torch.tensor([[height, width, 0, 0, height, width]]).expand(len(x), -1)
            embeds, added = cond.embeds, {"text_embeds": cond.pooled.expand(len(x), -1).to(x.dtype), "time_ids": ids}
        out = self.unet(x, t, embeds.expand(len(x), -1, -1).to(x.dtype), added_cond_kwargs=added).sample
        for handle in handles:
            handle.remove()
        alpha = self.alphas[t].to(x.dtype)
        return (alpha.sqrt() * out + (1 - alpha).sqrt() * x if self.v_prediction else out), maps

    def update(self, x: Tensor, eps: Tensor, t: int, t_next: int) -> Tensor:
        """DDIM with eta 0 in unit-variance latents."""
        a, b = self.alphas[t].to(x.dtype), self.alphas[t_next].to(x.dtype)
        return b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps

    @staticmethod
    def loss(maps: list[Tensor], reference: list[Tensor]) -> Tensor:
        """The sum over layers, as if there were 16 of them."""
        return (
            16 / len(maps) * sum((m - r).square().sum((-1, -2)).mean(1) for m, r in zip(maps, reference, strict=True))
        )

    def reconstruction(self, noise: Tensor, source, uncond, cfg: float) -> Tensor:
        """The first pass: ``[T, B, C, H, W]``, the latents that are sampled with the source from ``noise``."""
        latents = [noise]
        with torch.no_grad():
            for t, t_next in zip(self.timesteps[:-1], self.timesteps[1:], strict=True):
                negative, eps = (self.epsilon(latents[-1], t, cond)[0] for cond in (uncond, source))
                latents.append(self.update(latents[-1], negative + cfg * (eps - negative), t, t_next))
        return torch.stack(latents)

    def clean(self, x: Tensor, eps: Tensor, t: int) -> Tensor:
        """The clean latent that a noise prediction means."""
        a = self.alphas[t].to(x.dtype)
        return (x - (1 - a).sqrt() * eps) / a.sqrt()

    def clean_of_step(self, x: Tensor, x_next: Tensor, t: int, t_next: int) -> Tensor:
        """The clean latent that :meth:`update` was given to come from ``x`` to ``x_next``."""
        a, b = self.alphas[t].to(x.dtype), self.alphas[t_next].to(x.dtype)
        return self.clean(x, (x_next / b.sqrt() - x / a.sqrt()) / ((1 / b - 1).sqrt() - (1 / a - 1).sqrt()), t)

    @staticmethod
    def acts(edited: Tensor, source: Tensor) -> Tensor:
        """Place by place: how far two clean latents are apart around it, beside 0.3 of the 95 % quantile of that."""
        apart = (edited - source).abs().mean(1)
        rows, height, width = apart.shape
        around = torch.zeros_like(apart)
        for row in range(rows):
            for i in range(height):
                for j in range(width):
                    around[row, i, j] = apart[row, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean()
        strongest = torch.stack([torch.quantile(row, 0.95) for row in around])
        ratio = around / (0.3 * strongest[:, None, None])
        return (ratio**4 / (1 + ratio**4))[:, None]

    def algorithm_1(
        self, sources: Tensor, source, target, uncond, cfg: float, weight: float, carried: bool = False, local: int = 0
    ):
        """``sources [T+1, B, C, H, W]`` descending noise -> edited latent, and the loss of every step.

        ``carried`` updates the moved latent, which the paper does not; neither does it take the last ``local`` steps'
        latents from the source where the edit does not act."""
        with torch.no_grad():
            stored = [self.epsilon(x, t, source)[1] for x, t in zip(sources, self.timesteps[:-1], strict=False)]
        x, losses = sources[0], []
        for step, (t, t_next) in enumerate(zip(self.timesteps[:-1], self.timesteps[1:], strict=True)):
            leaf = x.detach().requires_grad_()
            loss = self.loss(self.epsilon(leaf, t, target)[1], stored[step])
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
            losses.append(loss.detach())
            with torch.no_grad():
                moved = x - weight * gradient
                negative = self.epsilon(moved, t, uncond)[0]
                eps = negative + cfg * (self.epsilon(moved, t, target)[0] - negative)
                x = self.update(moved if carried else x, eps, t, t_next)
                if step >= len(stored) - local:
                    own = self.clean_of_step(sources[step], sources[step + 1], t, t_next)
                    acts = self.acts(self.clean(moved, eps, t), own)
                    x = acts * x + (1 - acts) * sources[step + 1]
        return x, losses

    def released(self, sources: Tensor, source, target, uncond, cfg: float, weight: float) -> Tensor:
        """What the published code does with one image; SGD on the doubled input, whose first copy is carried on."""
        with torch.no_grad():
            stored = []
            for x, t in zip(sources, self.timesteps[:-1], strict=False):
                stored.append([self.epsilon(x, t, cond)[1] for cond in (uncond, source)])
        x = sources[0]
        for step, (t, t_next) in enumerate(zip(self.timesteps[:-1], self.timesteps[1:], strict=True)):
            doubled = torch.cat([x, x]).detach().requires_grad_()
            optimizer = torch.optim.SGD([doubled], lr=weight)
            branches = [
                self.epsilon(part, t, cond)[1] for part, cond in zip(doubled.chunk(2), (uncond, target), strict=True)
            ]
            loss = torch.zeros((), dtype=x.dtype)
            for maps, reference in zip(zip(*branches, strict=True), zip(*stored[step], strict=True), strict=True):
                # The layer's rows are [uncond heads, cond heads], one mean over all of them.
                current, wanted = torch.cat(maps, 1), torch.cat(reference, 1)
                loss = loss + 16 / len(branches[0]) * (current - wanted).square().sum((2, 3)).mean()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                first, second = doubled.detach().chunk(2)
                negative = self.epsilon(first, t, uncond)[0]
                eps = negative + cfg * (self.epsilon(second, t, target)[0] - negative)
                x = self.update(first, eps, t, t_next)
        return x
