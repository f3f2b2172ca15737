"""The shipped workflows of Learnable Regions, described once (see workflow_graphs.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workflow_graphs import checkpoint_loader, edit_report

if TYPE_CHECKING:
    from graph_builder import Graph, Node, Output

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


def generator(
    graph: Graph,
    column: int,
    image: Output,
    editor: Output,
    texts: tuple[str, str],
    anchors: int,
    vision: str = "demo model",
    clip: str = "demo model",
) -> tuple[Node, dict[str, Any]]:
    """Vision model and judge in the column before, then the Region Box Generator with its tables; returns it and what
    the report on the edit takes besides pictures."""
    seeing = graph.add("SemEdit_LoadVisionFeatures", column - 1, vision_model=vision)
    judging = graph.add("SemEdit_LoadCLIPScorer", column - 1, clip_model=clip)
    found = graph.add(
        "SemEdit_RegionBoxGenerator",
        column,
        image=image,
        vision_features=seeing.out("vision features"),
        clip_scorer=judging.out("clip scorer"),
        region_editor=editor,
        source_text=texts[0],
        target_text=texts[1],
        anchors=anchors,
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


def demo_region_edit(graph: Graph) -> None:
    """A face gets a beard, and nobody says where."""
    model = graph.add("SemEdit_LoadDemoModel", 0)
    pictures, number, texts = BEARD
    picture = graph.add("SemEdit_LoadDemoImage", 0, pictures=pictures, number=number)
    graph.note(
        "# The edit finds its own place\n\n**Region Box Generator** tries boxes around what the picture shows, lets "
        "the **editor** fill "
        "each, and ranks the results by CLIP: does it look like the target text, does the rest stay?\n\nThe red parts "
        "of its picture are "
        "what the vision model looks at; blue points are where the edit itself acts; the strong frames are the best "
        "boxes. "
        "Outside the best box no pixel changes.\n\nThe demo world "
        "knows the true answer; it is shown beside the edit.",
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
    found, judged_by = generator(graph, 3, picture.out("image"), editor.out("region editor"), texts, 2)
    graph.add(
        "SaveImage",
        4,
        title="Edited image",
        images=found.out("edited"),
        filename_prefix="semantic_editing/demo_region_edit",
    )
    graph.add("PreviewImage", 4, title="The best boxes", images=found.out("picture"))
    graph.add("PreviewImage", 4, title="All candidates, the best first", images=found.out("candidates"))
    graph.add("PreviewImage", 5, title="Original", images=picture.out("image"))
    graph.add("PreviewImage", 5, title="True edited image (for comparison)", images=picture.out("edited image"))
    edit_report(graph, 6, picture.out("image"), found.out("edited"), true_edit=picture.out("edited image"), **judged_by)


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
    found, judged_by = generator(graph, 3, picture.out("image"), editor.out("region editor"), texts, 2)
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


def sd15_inpaint_region_edit(graph: Graph) -> None:
    """The person's own picture, with a true inpainting model and DINO."""
    loader = checkpoint_loader(graph, "stable-diffusion-v1-5/stable-diffusion-inpainting", "sd-v1-5-inpainting.ckpt")
    picture = graph.add("LoadImage", 0, image="example.png")
    graph.note(
        "# Let the edit find its place in your own picture\n\nYou need an inpainting checkpoint in "
        "`models/checkpoints`, a DINO model in "
        "`models/vision_features` and a CLIP in `models/clip_scorer`; the README says which files.\n\n1. Load a "
        "picture of any size.\n"
        "2. *source text*: what is there, *target text*: what should be there. The editor's prompt says the same.\n3. "
        "Run. The scores "
        "tell what else was tried; *sizes* and *anchors* add boxes.",
        0, title="Before you run", height=330,
    )  # fmt: skip
    target = graph.add(
        "CLIPTextEncode",
        1,
        title="Target prompt",
        clip=loader.out("CLIP"),
        text="a high quality image of a white rabbit",
    )
    negative = graph.add("CLIPTextEncode", 1, title="Negative prompt", clip=loader.out("CLIP"), text="")
    editor = graph.add(
        "SemEdit_RegionInpaintEditor",
        1,
        model=loader.out("MODEL"),
        vae=loader.out("VAE"),
        positive=target.out("CONDITIONING"),
        negative=negative.out("CONDITIONING"),
        cfg=7.5,
    )
    texts = ("a dog", "a white rabbit")
    found, judged_by = generator(
        graph, 3, picture.out("IMAGE"), editor.out("region editor"), texts, 4, "dino-vitb16", "clip-vit-base-patch16"
    )
    graph.add(
        "SaveImage",
        4,
        title="Edited image",
        images=found.out("edited"),
        filename_prefix="semantic_editing/sd15_region_edit",
    )
    graph.add("PreviewImage", 4, title="The best boxes", images=found.out("picture"))
    graph.add("PreviewImage", 4, title="All candidates, the best first", images=found.out("candidates"))
    graph.add("PreviewImage", 5, title="Original", images=picture.out("IMAGE"))
    edit_report(graph, 6, picture.out("IMAGE"), found.out("edited"), **judged_by)


GRAPHS: dict[str, Callable[[Graph], None]] = {
    describe.__name__: describe
    for describe in (demo_region_edit, demo_region_mask_to_inpaint, sd15_inpaint_region_edit)
}
