"""The Apps and the blueprints: the shipped workflows' own descriptions, as forms and as single nodes.

An App (``workflows/*.app.json``) is a workflow that newer hosts open as a form. A blueprint (``subgraphs/*.json``) is
the closed part of a workflow, which newer hosts offer in the node search. Hosts that know neither load on without them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import caso_graphs
import delta_graphs
import region_graphs
import workflow_graphs

if TYPE_CHECKING:
    from graph_builder import Graph


def attribute_with_checkpoint(graph: Graph) -> None:
    """The attribute's workflow on a checkpoint, closed."""
    caso_graphs.sd15_caso_edit(graph)
    caso_graphs.offer_attribute(graph, [(graph.only("LoadImage"), "image")])


#: File name -> (workflow it stands for, its description).
APPS: dict[str, tuple[str, Callable[[Graph], None]]] = {
    "01 Edit Photo by Words - demo": ("demo_word_edit", workflow_graphs.demo_word_edit),
    "02 Edit Photo by Words - SD 1.5": ("sd15_word_edit", workflow_graphs.sd15_word_edit),
    "03 Turn an Attribute Up or Down - demo": ("demo_caso_edit", caso_graphs.demo_caso_edit),
    "04 Turn an Attribute Up or Down - SD 1.5": ("sd15_caso_edit", attribute_with_checkpoint),
    "05 Face, Edit by Text - demo": ("demo_deltaedit_text", delta_graphs.demo_deltaedit_text),
    "06 Face, Edit by Text - FFHQ": ("ffhq_deltaedit", delta_graphs.ffhq_deltaedit),
    "07 Edit by Words, Place Found - demo": ("demo_edit_by_words", region_graphs.demo_edit_by_words),
    "08 Edit by Words, Place Found - SD 1.5": ("sd15_inpaint_region_edit", region_graphs.sd15_inpaint_region_edit),
}


class Blueprint(NamedTuple):
    """A blueprint: how to build it, what it says of itself, what a person types to find it."""

    describe: Callable[[Graph], None]
    description: str
    aliases: list[str]


def words(graph: Graph) -> None:
    """Model, picture and words in, edited picture out."""
    model, clip, vae = graph.edge("model", "MODEL"), graph.edge("clip", "CLIP"), graph.edge("vae", "VAE")
    photo = graph.edge("image", "IMAGE")
    prompt = graph.add("CLIPTextEncode", 0, title="Source prompt", clip=clip, text="a photo of a cat")
    latent = graph.add("VAEEncode", 0, pixels=photo, vae=vae).out("LATENT")
    inversion = graph.add(
        "SemEdit_SPDInvInversion", 1, model=model, positive=prompt.out("CONDITIONING"), latent=latent, width=330
    )
    direction = graph.add("SemEdit_SentenceEditDirection", 1, clip=clip, source="cat", target="dog", mode="words")
    applied = graph.add(
        "SemEdit_ApplyEditDirection", 2, conditioning=prompt.out("CONDITIONING"),
        edit_direction=direction.out("edit direction"), clip=clip,
    )  # fmt: skip
    sampler = graph.add(
        "SemEdit_CrossAttnGuidedSampler", 2, model=model, inversion=inversion.out("inversion"),
        target=applied.out("conditioning"), width=330,
    )  # fmt: skip
    drawn = graph.add("VAEDecode", 3, samples=sampler.out("latent"), vae=vae).out("IMAGE")
    edited = graph.add("SemEdit_RestorePhotoSize", 3, photo=photo, edited=drawn)
    graph.enclose(
        "Edit Photo by Words",
        (prompt, "text", "describe the photo"), (direction, "source", "what it shows"),
        (direction, "target", "what you want"), (direction, "bank", "kind of words"), (applied, "strength"),
        (sampler, "cfg"), (sampler, "guidance"), (inversion, "steps"),
    )  # fmt: skip
    graph.give(edited.out("picture"), "image")
    graph.give(sampler.out("report"), "report")


def attribute(graph: Graph) -> None:
    """Model, picture and an embedding in, the picture with more or less of it out."""
    model, clip, vae = graph.edge("model", "MODEL"), graph.edge("clip", "CLIP"), graph.edge("vae", "VAE")
    photo = graph.edge("image", "IMAGE")
    latent = graph.add("VAEEncode", 0, pixels=photo, vae=vae).out("LATENT")
    loaded = graph.add("SemEdit_CASOEmbeddingLoader", 0, clip=clip, embedding_file="demo: glasses")
    sampler = graph.add(
        "SemEdit_CASOEditSampler", 1, model=model, clip=clip, semantic_embedding=loaded.out("embedding"),
        latent=latent, strength=3.0, window="middle", width=330,
    )  # fmt: skip
    drawn = graph.add("VAEDecode", 2, samples=sampler.out("latent"), vae=vae).out("IMAGE")
    edited = graph.add("SemEdit_RestorePhotoSize", 2, photo=photo, edited=drawn)
    graph.enclose(
        "Turn an Attribute Up or Down",
        (loaded, "embedding_file", "attribute"), (sampler, "strength"), (sampler, "window"), (sampler, "steps"),
    )  # fmt: skip
    graph.give(edited.out("picture"), "image")
    graph.give(sampler.out("report"), "report")


def place(graph: Graph) -> None:
    """Model, picture and two texts in, the picture edited where they differ out."""
    model, clip, vae = graph.edge("model", "MODEL"), graph.edge("clip", "CLIP"), graph.edge("vae", "VAE")
    photo = graph.edge("image", "IMAGE")
    edit = graph.add(
        "SemEdit_EditByWords", 0, model=model, clip=clip, vae=vae, image=photo, change="a dog", into="a white rabbit",
        cfg=7.5, width=360,
    )  # fmt: skip
    shown = graph.add("MaskToImage", 1, mask=edit.out("mask"))
    graph.enclose(
        "Edit by Words, Place Found",
        (edit, "change", "what is there"), (edit, "into", "what you want"), (edit, "cfg"), (edit, "steps"),
        (edit, "seed"), (edit, "sentence"), (edit, "working_size"),
    )  # fmt: skip
    graph.give(edit.out("result"), "image")
    graph.give(shown.out("IMAGE"), "place")
    graph.give(edit.out("report"), "report")


def face(graph: Graph) -> None:
    """A picture with a face and two texts in, the picture with the face edited out."""
    photo = graph.edge("image", "IMAGE")
    loader = graph.add("SemEdit_StyleGAN2Loader", 0, generator_file="demo")
    scorer = graph.add("SemEdit_LoadCLIPScorer", 0, clip_model="demo model")
    inversion = graph.add(
        "SemEdit_InvertToStyleCode", 1, image=photo, stylegan2=loader.out("stylegan2"), encoder_file="demo", width=310
    )
    _, _, texts = delta_graphs.GLASSES
    edit = graph.add(
        "SemEdit_DeltaEditMapper", 2, stylegan2=loader.out("stylegan2"), style_code=inversion.out("style code"),
        clip_scorer=scorer.out("clip scorer"), mapper_file="demo", image=photo, source_text=texts[0],
        target_text=texts[1], width=330,
    )  # fmt: skip
    paste = graph.add(
        "SemEdit_PasteFaceBack", 3, photo=photo, face_crop=inversion.out("face crop"), before=edit.out("before"),
        after=edit.out("image"),
    )  # fmt: skip
    graph.enclose(
        "Face, Edit by Text",
        (edit, "source_text", "the face now"), (edit, "target_text", "what you want"), (edit, "strength"),
        (edit, "disentangle"), (loader, "generator_file"), (inversion, "encoder_file"), (edit, "mapper_file"),
        (scorer, "clip_model"),
    )  # fmt: skip
    graph.give(paste.out("image"), "image")
    graph.give(edit.out("report"), "report")


BLUEPRINTS: dict[str, Blueprint] = {
    "Edit Photo by Words": Blueprint(
        words,
        "Changes one thing in a photo by words and keeps everything else. Describe the photo, then say what is there "
        "and what you want instead.",
        [
            "edit photo", "edit image", "edit picture", "change photo", "replace object", "replace", "swap object",
            "change cat to dog", "turn into", "add glasses", "smile", "change hair colour", "change hair color",
            "text edit", "prompt edit", "instruct edit",
        ],
    ),
    "Turn an Attribute Up or Down": Blueprint(
        attribute,
        "Gives a photo more or less of something that was learned from pictures: glasses, a smile, a beard, any "
        "embedding. Below 0 takes it away.",
        [
            "edit photo", "attribute slider", "smile", "add glasses", "remove glasses", "add beard", "remove beard",
            "age", "make older", "make younger", "change hair colour", "change hair color", "more or less", "slider",
        ],
    ),
    "Edit by Words, Place Found": Blueprint(
        place,
        "Changes one thing in a photo into another without a drawn mask: finds the place by the two texts and inpaints "
        "there; outside the box no pixel changes.",
        [
            "edit photo", "edit image", "replace object", "replace", "swap object", "auto mask", "inpaint by words",
            "change cat to dog", "turn into", "remove glasses", "add glasses", "smile", "change hair colour",
            "change hair color", "age",
        ],
    ),
    "Face, Edit by Text": Blueprint(
        face,
        "Edits a face in a photo by two short texts, in seconds, with a StyleGAN2; the rest of the photo stays.",
        [
            "edit face", "face edit", "edit portrait", "smile", "age", "make older", "make younger", "add glasses",
            "remove glasses", "add beard", "change hair colour", "change hair color", "edit photo", "portrait retouch",
        ],
    ),
}  # fmt: skip
