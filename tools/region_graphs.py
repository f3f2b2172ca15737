"""The shipped workflows of Learnable Regions, described once (see workflow_graphs.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workflow_graphs import checkpoint_loader, edit_report

if TYPE_CHECKING:
    from graph_builder import Graph
    from graph_parts import Node, Output

#: Chosen by eye, pairs whose edit succeeds: which, its number and the texts.
BEARD = (
    "facial hair: none to beard",
    4,
    ("a portrait of a person, clean shaven", "a portrait of a person, with a beard"),
)
GLASSES = (
    "glasses: none to glasses",
    8,
    ("a portrait of a person, without glasses", "a portrait of a person, wearing glasses"),
)


RED = ("hair color: black to red", 2, ("black hair", "red hair"))


def generator(
    graph: Graph,
    column: int,
    image: Output,
    editor: Output,
    texts: tuple[str, str],
) -> tuple[Node, dict[str, Any]]:
    """Vision model and judge in the column before, then the Region Box Generator with its tables; returns it and what
    the report on the edit takes besides pictures."""
    seeing = graph.add("SemEdit_LoadVisionFeatures", column - 1, vision_model="demo model")
    judging = graph.add("SemEdit_LoadCLIPScorer", column - 1, clip_model="demo model")
    found = graph.add(
        "SemEdit_RegionBoxGenerator",
        column,
        image=image,
        vision_features=seeing.out("vision features"),
        clip_scorer=judging.out("clip scorer"),
        region_editor=editor,
        source_text=texts[0],
        target_text=texts[1],
        width=360,
    )
    graph.add("PreviewAny", column, title="Scores", source=found.out("scores"), width=360, height=220)
    return found, {
        "mask": found.out("mask"),
        "clip_scorer": judging.out("clip scorer"),
        "vision_features": seeing.out("vision features"),
        "source_text": texts[0],
        "target_text": texts[1],
    }


def searching(graph: Graph, model: Node, source: Output, target: Output) -> Node:
    """The editor that the demo's search renders with."""
    return graph.add(
        "SemEdit_RegionInversionEditor",
        1,
        model=model.out("MODEL"),
        vae=model.out("VAE"),
        source=source,
        target=target,
        steps=12,
        cfg=1.5,
        guidance=0.0,
        working_size=128,
    )


def offer_search(graph: Graph, editor: Node, found: Node, *more: tuple[Node, str]) -> None:
    """Editor, search and all between behind one node."""
    graph.enclose(
        "Edit, Place Found",
        (found, "source_text", "what is there"), (found, "target_text", "what you want"), (found, "strategy"),
        (editor, "steps"), (editor, "cfg", "cfg of the search"), *more,
    )  # fmt: skip


def demo_region_edit(graph: Graph) -> None:
    """A face gets a beard, and nobody says where."""
    model = graph.add("SemEdit_LoadDemoModel", 0)
    pictures, number, texts = BEARD
    picture = graph.add("SemEdit_LoadDemoImage", 0, pictures=pictures, number=number)
    graph.note(
        "# The edit finds its own place\n\n**Region Box Generator** frames where the two prompts differ, lets the "
        "**editor** fill three boxes, and compares them by CLIP with the picture as it is: does it look like the "
        "target text, does the rest stay?\n\nThe strong frames are the best boxes. Outside the best box no pixel "
        "changes.\n\nThe demo world knows the true answer; it is shown beside the edit.",
        0, title="What this shows", height=330,
    )  # fmt: skip
    prompts = [
        graph.add("CLIPTextEncode", 1, title=title, clip=model.out("CLIP"), text=picture.out(text)).out("CONDITIONING")
        for title, text in (
            ("Source prompt (caption)", "caption"),
            ("Target prompt (caption of the edit)", "edited caption"),
        )
    ]
    editor = searching(graph, model, *prompts)
    found, judged_by = generator(graph, 3, picture.out("image"), editor.out("region editor"), texts)
    graph.add(
        "SaveImage",
        4,
        title="Edited image",
        images=found.out("edited"),
        filename_prefix="semantic_editing/demo_region_edit",
    )
    graph.add("PreviewImage", 4, title="The best boxes", images=found.out("picture"))
    graph.add("PreviewImage", 4, title="All candidates", images=found.out("candidates"))
    graph.add("PreviewImage", 5, title="Original", images=picture.out("image"))
    graph.add("PreviewImage", 5, title="True edited image (for comparison)", images=picture.out("edited image"))
    edit_report(graph, 6, picture.out("image"), found.out("edited"), true_edit=picture.out("edited image"), **judged_by)
    offer_search(graph, editor, found)


def demo_region_mask_to_inpaint(graph: Graph) -> None:
    """The found MASK in a stock inpainting graph."""
    model = graph.add("SemEdit_LoadDemoModel", 0)
    pictures, number, texts = GLASSES
    picture = graph.add("SemEdit_LoadDemoImage", 0, pictures=pictures, number=number)
    graph.note(
        "# The found mask in stock nodes\n\n**Region Box Generator** is used for its *mask* only. Stock *Set Latent "
        "Noise Mask* and *KSampler* then paint inside it, and *ImageCompositeMasked* keeps every pixel outside.\n\nAny "
        "other inpainting "
        "nodes take the same mask.",
        0, title="What this shows", height=270,
    )  # fmt: skip
    target = graph.add(
        "CLIPTextEncode", 1, title="Target prompt", clip=model.out("CLIP"), text=picture.out("edited caption")
    )
    empty = graph.add("CLIPTextEncode", 1, title="Negative prompt (empty)", clip=model.out("CLIP"), text="")
    prompts = {"positive": target.out("CONDITIONING"), "negative": empty.out("CONDITIONING")}
    source = graph.add("CLIPTextEncode", 1, title="Source prompt", clip=model.out("CLIP"), text=picture.out("caption"))
    editor = searching(graph, model, source.out("CONDITIONING"), target.out("CONDITIONING"))
    found, judged_by = generator(graph, 3, picture.out("image"), editor.out("region editor"), texts)
    encoded = graph.add("VAEEncode", 4, pixels=picture.out("image"), vae=model.out("VAE"))
    masked = graph.add("SetLatentNoiseMask", 4, samples=encoded.out("LATENT"), mask=found.out("mask"))
    sampled = graph.add(
        "KSampler",
        4,
        model=model.out("MODEL"),
        **prompts,
        latent_image=masked.out("LATENT"),
        seed=0,
        steps=30,
        cfg=3.0,
        sampler_name="euler",
        scheduler="ddim_uniform",
        denoise=0.7,
    )
    decoded = graph.add("VAEDecode", 5, samples=sampled.out("LATENT"), vae=model.out("VAE"))
    pasted = graph.add(
        "ImageCompositeMasked",
        5,
        destination=picture.out("image"),
        source=decoded.out("IMAGE"),
        mask=found.out("mask"),
        x=0,
        y=0,
        resize_source=False,
    )
    graph.add(
        "SaveImage",
        5,
        title="Edited image",
        images=pasted.out("IMAGE"),
        filename_prefix="semantic_editing/demo_region_mask",
    )
    shown = graph.add("MaskToImage", 4, mask=found.out("mask"))
    graph.add("PreviewImage", 6, title="Mask that was found", images=shown.out("IMAGE"))
    graph.add("PreviewImage", 6, title="Original", images=picture.out("image"))
    edit_report(graph, 7, picture.out("image"), pasted.out("IMAGE"), true_edit=picture.out("edited image"), **judged_by)
    offer_search(graph, editor, found, (sampled, "denoise"), (sampled, "cfg"), (sampled, "seed"))


def by_words(graph: Graph, model: Node, picture: Node, texts: tuple[str, str], name: str, **options: Any) -> None:
    """The one node, and its result saved; as a form, its picture, words, seed and strength of words."""
    edit = graph.add(
        "SemEdit_EditByWords",
        1,
        model=model.out("MODEL"),
        clip=model.out("CLIP"),
        vae=model.out("VAE"),
        image=picture.out("IMAGE" if picture.type == "LoadImage" else "image"),
        change=texts[0],
        into=texts[1],
        width=360,
        **options,
    )
    saved = graph.add(
        "SaveImage", 2, title="Edited image", images=edit.out("result"), filename_prefix=f"semantic_editing/{name}"
    )
    shown = graph.add("MaskToImage", 2, mask=edit.out("mask"))
    graph.add("PreviewImage", 2, title="Place that was found", images=shown.out("IMAGE"))
    own = [(picture, "image")] if picture.type == "LoadImage" else [(picture, "pictures"), (picture, "number")]
    graph.app([*own, *((edit, widget) for widget in ("change", "into", "cfg", "seed"))], [saved])
    graph.group()


def demo_edit_by_words(graph: Graph) -> None:
    """Two texts, one node: red hair, painted by a plain model."""
    model = graph.add("SemEdit_LoadDemoModel", 0)
    pictures, number, texts = RED
    picture = graph.add("SemEdit_LoadDemoImage", 0, pictures=pictures, number=number)
    graph.note(
        "# Two texts, one node\n\n**Edit by Words, Place Found** compares what the model predicts for both texts at "
        "noised copies of the picture, frames the place where they differ most, and inpaints there.\n\nOutside the "
        "box no pixel changes. Under *advanced* are the sentence around the texts and the size the model works at.",
        0, title="What this shows", height=270,
    )  # fmt: skip
    by_words(
        graph,
        model,
        picture,
        texts,
        "demo_edit_by_words",
        cfg=3.0,
        sentence="a portrait of a person, {}",
        context=100.0,
        working_size=128,
    )
    graph.add("PreviewImage", 3, title="Original", images=picture.out("image"))
    graph.add("PreviewImage", 3, title="True edited image (for comparison)", images=picture.out("edited image"))


def sd15_inpaint_region_edit(graph: Graph) -> None:
    """The person's own picture, with a true inpainting model."""
    loader = checkpoint_loader(graph, "stable-diffusion-v1-5/stable-diffusion-inpainting", "sd-v1-5-inpainting.ckpt")
    picture = graph.add("LoadImage", 0, image="example.png")
    graph.note(
        "# Let the edit find its place in your own picture\n\nYou need an inpainting checkpoint in "
        "`models/checkpoints`; the README says which file.\n\n1. Load a picture of any size.\n2. *change*: what is "
        "there, *into*: what should be there.\n3. Run.\n\nWith **Load CLIP Scorer** on *clip scorer* three boxes "
        "compete, and where none helps the picture comes back as it is.",
        0, title="Before you run", height=290,
    )  # fmt: skip
    by_words(graph, loader, picture, ("a dog", "a white rabbit"), "sd15_region_edit", cfg=7.5)


GRAPHS: dict[str, Callable[[Graph], None]] = {
    describe.__name__: describe
    for describe in (demo_region_edit, demo_region_mask_to_inpaint, demo_edit_by_words, sd15_inpaint_region_edit)
}
