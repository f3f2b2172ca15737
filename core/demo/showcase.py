"""Every technique once on the demo model: the pictures and figures behind ``semantic-editing demo``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..inversion import Inversion
from ..metrics.image import attributes_kept, psnr, success
from ..pix2pix_zero.autocorr_inversion import autocorr_invert
from ..pix2pix_zero.edit_direction import sentence_direction
from ..pix2pix_zero.guided_edit import Preset, cross_attention_guided_edit
from ..pix2pix_zero.sentences import expand_words
from ..sampling import reconstruct
from ..spdinv.invert import invert
from .data import DemoPair
from .model import DemoModel
from .showcase_caso import show_embeddings
from .showcase_deltaedit import show_style_edits
from .showcase_regions import show_regions
from .showcase_result import Showcase

EDITS = (
    "mouth: sad to smile", "glasses: none to glasses", "facial hair: none to beard", "hair color: black to red",
    "background: blue to green",
)  # fmt: skip
#: Ways to edit, by the keys of the measures.
WAYS = {
    "word_swap": "plain DDIM + word swap",
    "guided_swap": "SPDInv + word swap + guidance",
    "guided": "SPDInv + direction + guidance",
}
MASKED_EDIT = "mouth: sad to smile"
MASK_BOX = (0.5, 0.8, 0.25, 0.75)  # top, bottom, left, right: the lower face


@dataclass(frozen=True)
class Settings:
    """Settings of the run: steps of every trajectory, classifier-free guidance, map guidance and direction strength.

    cfg is below the paper's 5 and guidance above its 0.1: the demo model's text is so plain that cfg 5 overshoots,
    and its maps are so coarse that 0.1 holds little.
    """

    steps: int = 30
    cfg: float = 2.0
    guidance: float = 0.05
    preset: Preset = "carried"
    strength: float = 1.0
    sentences: int = 256
    pair: int = 0


def run_showcase(
    demo: DemoModel, settings: Settings | None = None, report: Callable[[str], None] = lambda _: None
) -> Showcase:
    """Rebuild a portrait three ways; edit five by words, one inside a mask, others by embeddings, in a found place, and
    in style space.

    Args:
        report: told in a line what comes next.

    Raises:
        EditingError: the demo model lacks a part, or a setting is out of range.
    """
    settings = settings or Settings()
    result = Showcase(measures={"settings": vars(settings).copy()})
    with torch.no_grad():
        report(
            f"inverting and rebuilding a portrait, {settings.steps} steps: "
            "plain DDIM, SPDInv, autocorrelation-regularised DDIM"
        )
        _rebuild(demo, settings, result)
        pairs = [demo.pairs_of(edit)[settings.pair] for edit in EDITS]
        source_cond = demo.encode_text([pair.source_caption for pair in pairs])
        latents = demo.encode_image(torch.stack([pair.source for pair in pairs]))
        report(
            f"editing {len(pairs)} portraits: directions from {settings.sentences} sentences a side, SPDInv, "
            "cross-attention guidance"
        )
        denoiser = demo.denoiser()
        inversion = invert(denoiser, latents, source_cond, steps=settings.steps)
        target_cond = _directed(demo, pairs, source_cond, settings)
        _edits(demo, pairs, inversion, source_cond, target_cond, settings, result)
        report("editing inside a mask")
        _masked(demo, pairs, latents, source_cond, target_cond, settings, result)
        report("turning attributes up and down by learned embeddings")
        show_embeddings(demo, settings.steps, settings.pair, result)
        report("letting edits find their own place")
        show_regions(demo, settings.steps, settings.pair, result)
        report("moving style codes by texts, by an example, and by the style diffusion")
        show_style_edits(demo, settings.steps, settings.pair, result)
    return result


def _rebuild(demo: DemoModel, settings: Settings, result: Showcase) -> None:
    image, caption = demo.images[:1], demo.captions[0]
    cond, latent = demo.encode_text([caption]), demo.encode_image(image)
    through_vae = demo.decode(latent)
    cells = [
        result.show("rebuild_original", image[0], f"original\n{caption}"),
        result.show(
            "rebuild_vae",
            through_vae[0],
            f"through the VAE alone\n{float(psnr(through_vae, image)):.1f} dB to the original",
        ),
    ]
    ways: list[tuple[str, str, Callable[[Denoiser], Inversion]]] = [
        ("ddim", "plain DDIM inversion", lambda denoiser: invert(denoiser, latent, cond, settings.steps, "ddim")),
        ("spdinv", "SPDInv", lambda denoiser: invert(denoiser, latent, cond, settings.steps)),
        (
            "autocorr",
            "autocorr DDIM inversion",
            lambda denoiser: autocorr_invert(denoiser, latent, cond, settings.steps),
        ),
    ]
    figures = result.measures["rebuild"] = {}
    for key, name, make in ways:
        inversion = make(demo.denoiser())
        rebuilt = demo.decode(reconstruct(demo.denoiser(), inversion, cond))
        decibel, spread = float(psnr(rebuilt, through_vae)), float(inversion.noise.std())
        figures[key] = {"psnr": decibel, "noise_std": spread, "u": inversion.evaluations}
        text = f"{name}\n{decibel:.1f} dB to the VAE's image\nnoise std {spread:.3f}\n{inversion.evaluations:.0f} u"
        cells.append(result.show(f"rebuild_{key}", rebuilt[0], text))
    result.rows.append(("Inversion: image to noise, and the same image again (cfg 1)", cells))


def _directed(demo: DemoModel, pairs: list[DemoPair], source_cond: Tensor, settings: Settings) -> Tensor:
    """Each pair's source conditioning moved along its edit's sentence direction, ``[B, 77, D]``."""
    moved = []
    for pair, cond in zip(pairs, source_cond, strict=True):
        source, target = expand_words(pair.words, settings.sentences, bank="portrait")
        direction = sentence_direction(
            demo.encode_text,
            source,
            target,
            tokenize=demo.token_ids,
            source=pair.words[0] or "nothing",
            target=pair.words[1],
        )
        moved.append(direction.apply(cond[None], strength=settings.strength)[0])
    return torch.cat(moved)


def _edits(
    demo: DemoModel,
    pairs: list[DemoPair],
    inversion: Inversion,
    source_cond: Tensor,
    target_cond: Tensor,
    settings: Settings,
    result: Showcase,
) -> None:
    sources, targets = torch.stack([pair.source for pair in pairs]), torch.stack([pair.target for pair in pairs])
    word_cond = demo.encode_text([pair.target_caption for pair in pairs])
    denoiser = demo.denoiser()
    swapped_inversion = invert(denoiser, inversion.latents[0], source_cond, settings.steps, "ddim")
    swapped = demo.decode(reconstruct(denoiser, swapped_inversion, word_cond, settings.cfg, source_cond))
    pictures, cost = {"word_swap": swapped}, {"word_swap": (denoiser.evaluations.forward, 0)}
    for key, cond in (("guided_swap", word_cond), ("guided", target_cond)):
        counted = demo.denoiser()
        pictures[key] = demo.decode(
            cross_attention_guided_edit(
                counted,
                inversion,
                source_cond,
                cond,
                cfg=settings.cfg,
                guidance=settings.guidance,
                preset=settings.preset,
            )
        )
        cost[key] = (counted.evaluations.forward, counted.evaluations.backward)
    figures = result.measures["edits"] = {}
    for number, pair in enumerate(pairs):
        stem = pair.edit.replace(": ", "_").replace(" ", "_")
        true = targets[number][None]
        entry: dict[str, dict[str, float]] = {}
        for key, images in pictures.items():
            seen = demo.classifier.labels(images[number][None])
            forward, backward = (count / len(pairs) for count in cost[key])
            entry[key] = {
                "psnr_to_true": float(psnr(images[number][None], true)),
                "success": float(success(seen, {pair.attribute: pair.after})),
                "others_kept": float(attributes_kept(seen, demo.classifier.labels(true), pair.attribute)),
                "u_forward": forward + (0 if key == "word_swap" else inversion.evaluations),
                "u_backward": backward,
            }
        figures[pair.edit] = entry
        cells = [
            result.show(f"{stem}_source", sources[number], f"source\n{pair.source_caption}"),
            result.show(f"{stem}_true", targets[number], "the true edited picture"),
            *(result.judged(f"{stem}_{key}", pictures[key][number], name, entry[key]) for key, name in WAYS.items()),
        ]
        result.rows.append((pair.edit, cells))


def _masked(
    demo: DemoModel,
    pairs: list[DemoPair],
    latents: Tensor,
    source_cond: Tensor,
    target_cond: Tensor,
    settings: Settings,
    result: Showcase,
) -> None:
    number = EDITS.index(MASKED_EDIT)
    rows = slice(number, number + 1)
    pair = pairs[number]
    side = pair.source.shape[-1]
    top, bottom, left, right = (round(share * side) for share in MASK_BOX)
    mask = torch.zeros(1, side, side)
    mask[:, top:bottom, left:right] = 1
    denoiser = demo.denoiser()
    inversion = invert(denoiser, latents[rows], source_cond[rows], steps=settings.steps)
    latent = cross_attention_guided_edit(
        denoiser,
        inversion,
        source_cond[rows],
        target_cond[rows],
        cfg=settings.cfg,
        guidance=settings.guidance,
        preset=settings.preset,
        mask=mask,
    )
    kept = largest_change_outside(latent, latents[rows], mask)
    result.measures["masked"] = {"largest_change_outside": kept}
    cells = [
        result.show("masked_source", pair.source, "source"),
        result.show("masked_mask", mask.expand(3, -1, -1), "mask: edit in the white"),
        result.show("masked_edited", demo.decode(latent)[0], f"edited\nlargest latent change outside: {kept:.1g}"),
    ]
    result.rows.append((f"{MASKED_EDIT}, inside a mask", cells))


def largest_change_outside(latent: Tensor, source: Tensor, mask: Tensor) -> float:
    """Largest absolute change of the latent where the mask ``[1, H, W]`` is wholly 0."""
    inside = torch.nn.functional.adaptive_max_pool2d(mask[None], latent.shape[-2:])
    return float(((latent - source).abs() * (inside == 0)).max())
