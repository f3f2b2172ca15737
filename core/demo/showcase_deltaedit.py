"""Faces moved in style space by texts and by an example: DeltaEdit's part of ``semantic-editing demo``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from ..deltaedit.alignment import FaceCrop, centre_place, paste_back
from ..deltaedit.edit import Differences, delta_edit, differences_of_pictures, differences_of_texts, features_of
from ..deltaedit.encoder_files import load_encoder
from ..deltaedit.generator_files import load_generator
from ..deltaedit.invert import invert
from ..deltaedit.mapper import DeltaMapper
from ..deltaedit.mapper_files import load_mapper
from ..deltaedit.style_code import StyleCode
from ..deltaedit.style_diffusion import decode, encode, load_style_diffusion
from ..deltaedit.stylegan2 import StyleGAN2
from ..images.contact_sheet import Cell
from ..metrics.image import attributes_kept, psnr
from ..models.clip import ClipScorer
from .builders import demo_scorer
from .data import DemoPair
from .model import DemoModel
from .showcase_result import Showcase

EDITS = (
    "glasses: none to glasses", "facial hair: none to beard", "hair color: black to red", "background: blue to green",
)  # fmt: skip
BY_EXAMPLE, BY_DIFFUSION = "background: blue to green", "hair color: black to red"
SENTENCE = "a portrait of a person, {}"  # around the words of an edit
PASSES, REFINE, STEPS = 3, 30, 20  # the nodes' defaults: of the encoder, of refinement, of the diffusion


@dataclass(frozen=True, eq=False)
class _Networks:
    """The demo's style networks, and the CLIP that the mapper was trained with."""

    generator: StyleGAN2
    mapper: DeltaMapper
    scorer: ClipScorer


@dataclass(frozen=True, eq=False)
class _Face:
    """A portrait at the generator's size ``[1, 3, S, S]``, its style code, and the generator's copy of it."""

    pair: DemoPair
    face: Tensor
    code: StyleCode
    copy: Tensor

    @property
    def stem(self) -> str:
        """What its files' names begin with."""
        return "style_" + self.pair.edit.replace(": ", "_").replace(" ", "_")


def show_style_edits(demo: DemoModel, steps: int, number: int, result: Showcase) -> None:
    """Edit a portrait each by a pair of texts; one by a pair of pictures of somebody else; one by the style diffusion.

    Args:
        steps: of the style diffusion, at most :data:`STEPS`.
        number: which pair of each edit; the example is the next.
    """
    folder = demo.folder / "style"
    generator = load_generator(folder / "generator.safetensors").eval()
    encoder = load_encoder(folder / "encoder.safetensors", generator.layout.rows, generator.style_dim).eval()
    networks = _Networks(generator, load_mapper(folder / "mapper.safetensors"), demo_scorer(demo))
    pairs = [of[number % len(of)] for of in map(demo.pairs_of, EDITS)]
    faces = torch.stack([pair.source for pair in pairs])
    faces = avg_pool2d(faces, faces.shape[-1] // generator.size)
    codes = invert(generator, encoder, faces, passes=PASSES, steps=REFINE)
    copies = _drawn(generator, codes)
    result.measures["style_edits"] = {}
    for row, pair in enumerate(pairs):
        one = slice(row, row + 1)
        face = _Face(pair, faces[one], codes.select(one), copies[one])
        cells = _edited(demo, networks, face, result)
        result.rows.append((f"{pair.edit}, by two texts that move a style code (DeltaEdit)", cells))
        if pair.edit == BY_DIFFUSION:
            cells += _by_diffusion(demo, networks, face, min(steps, STEPS), result)
        if pair.edit == BY_EXAMPLE:
            of = demo.pairs_of(pair.edit)
            shown = _by_example(demo, networks, face, of[(number + 1) % len(of)], result)
            result.rows.append((f"{pair.edit}, as two pictures of somebody else show it (DeltaEdit)", shown))


def _edited(demo: DemoModel, networks: _Networks, face: _Face, result: Showcase) -> list[Cell]:
    """By texts, with the texts of the shipped workflows and the nodes' defaults."""
    pair, copy = face.pair, face.copy
    drawn = _drawn(networks.generator, _moved(networks, face, _texts(networks, pair)))
    pasted = _pasted(pair, copy, drawn)
    decibel = float(psnr(copy, face.face))
    in_drawn, in_photo = _judged(demo, pair, drawn), _judged(demo, pair, pasted)
    result.measures["style_edits"][pair.edit] = {"copy_psnr": decibel, "drawn": in_drawn, "texts": in_photo}
    copied = f"the generator's copy, {copy.shape[-1]} pixels\n{decibel:.1f} dB to the source"
    return [
        result.show(f"{face.stem}_source", pair.source, f"source\n{pair.source_caption}"),
        result.show(f"{face.stem}_true", pair.target, "the true edited picture"),
        result.show(f"{face.stem}_copy", _large(copy, pair)[0], copied),
        result.judged(f"{face.stem}_drawn", _large(drawn, pair)[0], f"its edit to: {pair.words[1]}", in_drawn),
        result.judged(f"{face.stem}_texts", pasted[0], "what it changed, in the photo", in_photo),
    ]


def _by_example(demo: DemoModel, networks: _Networks, face: _Face, example: DemoPair, result: Showcase) -> list[Cell]:
    """By the difference of two pictures of somebody else, no words."""
    shown = example.source[None], example.target[None]
    wanted = differences_of_pictures(networks.scorer, *shown, networks.mapper.preprocessing)
    pasted = _pasted(face.pair, face.copy, _drawn(networks.generator, _moved(networks, face, wanted)))
    entry = result.measures["style_edits"][face.pair.edit]["example"] = _judged(demo, face.pair, pasted)
    return [
        result.show(f"{face.stem}_example_before", example.source, "the example: before"),
        result.show(f"{face.stem}_example_after", example.target, "and after"),
        (face.pair.source, "source"),
        (face.pair.target, "the true edited picture"),
        result.judged(f"{face.stem}_example", pasted[0], "what it changed, in the photo", entry),
    ]


def _by_diffusion(demo: DemoModel, networks: _Networks, face: _Face, steps: int, result: Showcase) -> list[Cell]:
    """By texts, drawn by the style diffusion from the portrait's own noise."""
    network = load_style_diffusion(demo.folder / "style" / "diffusion.safetensors")
    noise = encode(network, face.face * 2 - 1, face.code, steps, exact=True)
    code = _moved(networks, face, _texts(networks, face.pair))
    drawn = (decode(network, noise, code, steps) / 2 + 0.5).clamp(0, 1)
    pasted = _pasted(face.pair, face.face, drawn)
    entry = {**_judged(demo, face.pair, pasted), "u_forward": noise.evaluations + steps}
    result.measures["style_edits"][face.pair.edit]["diffusion"] = entry
    told = f"by the style diffusion (DeltaEdit-D), {entry['u_forward']:.0f} u"
    return [result.judged(f"{face.stem}_diffusion", pasted[0], told, entry)]


def _texts(networks: _Networks, pair: DemoPair) -> Differences:
    return differences_of_texts(networks.scorer, *(SENTENCE.format(words) for words in pair.words))


def _moved(networks: _Networks, face: _Face, wanted: Differences) -> StyleCode:
    """The code after an edit at the node's defaults."""
    seen = features_of(networks.scorer, face.pair.source[None], networks.mapper.preprocessing)
    return delta_edit(networks.mapper, face.code, seen, wanted, clip=networks.scorer.identity).code


def _drawn(generator: StyleGAN2, code: StyleCode) -> Tensor:
    """Pictures ``[B, 3, S, S]`` in 0..1."""
    return (generator.synthesize(code) / 2 + 0.5).clamp(0, 1)


def _pasted(pair: DemoPair, before: Tensor, after: Tensor) -> Tensor:
    """The portrait with what an edit changed, ``[1, 3, H, W]``."""
    height, width = pair.source.shape[-2:]
    crop = FaceCrop((centre_place(height, width),), height, width)
    return paste_back(pair.source[None], crop, before, after)[0]


def _large(pictures: Tensor, pair: DemoPair) -> Tensor:
    """At the portrait's size."""
    if pictures.shape[-1] == pair.source.shape[-1]:
        return pictures
    return interpolate(pictures, pair.source.shape[-2:], mode="bicubic").clamp(0, 1)


def _judged(demo: DemoModel, pair: DemoPair, pictures: Tensor) -> dict[str, float]:
    """Figures of one picture; labels are the judge's, decibels at the picture's own size."""
    labels = demo.judge.labels(_large(pictures, pair))
    truth = avg_pool2d(pair.target[None], pair.target.shape[-1] // pictures.shape[-1])
    return {
        "success": float(labels[0][pair.attribute] == pair.after),
        "others_kept": float(attributes_kept(labels, demo.judge.labels(pair.target[None]), pair.attribute)),
        "psnr_to_true": float(psnr(pictures, truth)),
    }
