"""The workflows of the editing engines, described once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workflow_graphs import PAIR, checkpoint_loader, demo_source, edit_report, show

if TYPE_CHECKING:
    from graph_builder import Graph


def engine_edit(
    graph: Graph, kind: str, name: str, pictures: str, number: int, note: str, turned: tuple[str, ...], **widgets: Any
) -> None:
    """A picture of the demo edited by an engine's guider, beside the true answer."""
    model, picture, positive, latent = demo_source(graph, pictures, number)
    graph.note(note, 0, title="What this shows", height=310)
    inversion = graph.add(
        "SemEdit_SPDInvInversion", 2, model=model.out("MODEL"), positive=positive, latent=latent, width=330
    )
    guider = graph.add(
        kind, 3, model=model.out("MODEL"), clip=model.out("CLIP"), inversion=inversion.out("inversion"),
        source_text=picture.out("caption"), target_text=picture.out("edited caption"), width=330, **widgets,
    )  # fmt: skip
    sampler = graph.add("KSamplerSelect", 3, sampler_name="euler")
    sampled = graph.add(
        "SamplerCustomAdvanced", 4, noise=inversion.out("noise"), guider=guider.out("guider"),
        sampler=sampler.out("SAMPLER"), sigmas=inversion.out("sigmas"), latent_image=inversion.out("noise latent"),
    )  # fmt: skip
    edited = show(graph, 4, sampled.out("output"), model.out("VAE"), name, "Edited image")
    graph.add("PreviewImage", 5, title="Original", images=picture.out("image"))
    graph.add("PreviewImage", 5, title="True edited image (for comparison)", images=picture.out("edited image"))
    edit_report(graph, 6, picture.out("image"), edited, true_edit=picture.out("edited image"))
    title = guider.title.removesuffix(" Guider")
    graph.enclose(
        title, *((guider, name) for name in turned), (inversion, "steps"), also=(graph.only("CLIPTextEncode"),)
    )


def demo_prompt_to_prompt(graph: Graph) -> None:
    """A face gets glasses because its prompt says so."""
    engine_edit(
        graph, "SemEdit_PromptToPromptGuider", "demo_prompt_to_prompt", PAIR, 0,
        "# Edit by changing the prompt\n\n1. **SPDInv Inversion** finds the picture's noise.\n2. **Prompt-to-Prompt "
        "Guider** samples from it with the target text; every word that both texts have attends as it does in the "
        "picture, so all else stays.\n\nBoth texts come from the demo picture here; with your own picture, write the "
        "source prompt and copy it into *target_text* with the words changed. Too much stays: lower *self_fraction* "
        "and *cross_fraction*; too much changes: raise them, or name the place in *blend_words*.",
        ("cfg", "cross_fraction", "self_fraction", "blend_words"),
    )  # fmt: skip


def demo_masactrl(graph: Graph) -> None:
    """A hat where there was short hair: the shape changes, the rest is looked up in the picture."""
    engine_edit(
        graph, "SemEdit_MasaCtrlGuider", "demo_masactrl", "top: short to hat", 0,
        "# Change a shape\n\n1. **SPDInv Inversion** finds the picture's noise.\n2. **MasaCtrl Guider** lets the "
        "target text make its own layout for the first steps (*start_step*), then fills it with what the picture has: "
        "its self-attention takes keys and values from there.\n\nThe change is too small: raise *start_step* or "
        "*cfg*; too much is lost: lower them.",
        ("cfg", "start_step", "foreground_words"),
    )  # fmt: skip


def demo_plug_and_play(graph: Graph) -> None:
    """Another background behind the same structure."""
    engine_edit(
        graph, "SemEdit_PlugAndPlayGuider", "demo_plug_and_play", "background: blue to green", 0,
        "# Change looks, keep structure\n\n1. **SPDInv Inversion** finds the picture's noise.\n2. **Plug-and-Play "
        "Guider** plugs the picture's features and self-attention into the sampling of the target text: the structure "
        "stays, colours and materials change.\n\nToo little changes: lower *feature_fraction* and "
        "*attention_fraction*, or raise *cfg*.",
        ("cfg", "feature_fraction", "attention_fraction"),
    )  # fmt: skip


def demo_several_edits(graph: Graph) -> None:
    """Two things added to one picture, each finding its own place."""
    model, picture, positive, latent = demo_source(graph, PAIR, 0)
    graph.note(
        "# Several edits at once\n\n1. **SPDInv Inversion** finds the picture's noise.\n2. **Semantic Guidance "
        "Guider** adds every line of *edits* to the picture's prompt (*context*) where it changes most; the rest "
        "stays.\n\nAn edit is too weak: give it a number of its own (`red hair: 5`). It spreads too far: raise "
        "*threshold*, or its own (`red hair @ 0.9`). A leading `-` takes away.",
        0, title="What this shows", height=290,
    )  # fmt: skip
    inversion = graph.add(
        "SemEdit_SPDInvInversion", 2, model=model.out("MODEL"), positive=positive, latent=latent, width=330
    )
    guider = graph.add(
        "SemEdit_SemanticGuidanceGuider", 3, model=model.out("MODEL"), clip=model.out("CLIP"),
        inversion=inversion.out("inversion"), edits=SEVERAL, context=picture.out("caption"), width=330,
    )  # fmt: skip
    sampler = graph.add("KSamplerSelect", 3, sampler_name="euler")
    sampled = graph.add(
        "SamplerCustomAdvanced", 4, noise=inversion.out("noise"), guider=guider.out("guider"),
        sampler=sampler.out("SAMPLER"), sigmas=inversion.out("sigmas"), latent_image=inversion.out("noise latent"),
    )  # fmt: skip
    edited = show(graph, 4, sampled.out("output"), model.out("VAE"), "demo_several_edits", "Edited image")
    graph.add("PreviewImage", 5, title="Original", images=picture.out("image"))
    edit_report(graph, 6, picture.out("image"), edited)
    graph.enclose(
        "Several Edits", (guider, "edits"), (guider, "scale"), (guider, "threshold"), (inversion, "steps"),
        also=(graph.only("CLIPTextEncode"),),
    )  # fmt: skip


def sd15_concept_edit(graph: Graph) -> None:
    """A concept of the person's own, as a LoRA and a textual inversion, put into a photo."""
    loader = checkpoint_loader(graph, "Comfy-Org/stable-diffusion-v1-5-archive", "v1-5-pruned-emaonly-fp16.safetensors")
    picture = graph.add("LoadImage", 0, image="example.png")
    graph.note(
        "# Put your own concept into a photo\n\nNeeds an SD 1.x checkpoint, and your LoRA in `models/loras` or your "
        "textual inversion in `models/embeddings`. Only one of them: bypass **Load LoRA**, or write the LoRA's word "
        "in place of `embedding:my_concept`.\n\n1. Describe the photo in **Source prompt** and *source text*.\n2. In "
        "*target text* write the concept where the thing stands that it replaces; *blend words* names both.\n\nToo "
        "little of it: lower *self fraction*, raise *cfg*. Too much changes: raise *background keep*.",
        0, title="Before you run", height=300,
    )  # fmt: skip
    source = "a photo of a cat"
    concept = graph.add(
        "LoraLoader", 1, model=loader.out("MODEL"), clip=loader.out("CLIP"), lora_name="my_concept.safetensors"
    )
    prompt = graph.add(
        "CLIPTextEncode", 1, title="Source prompt: describe your image", clip=loader.out("CLIP"), text=source
    )
    encoded = graph.add("VAEEncode", 1, pixels=picture.out("IMAGE"), vae=loader.out("VAE"))
    inversion = graph.add(
        "SemEdit_SPDInvInversion", 2, model=loader.out("MODEL"), positive=prompt.out("CONDITIONING"),
        latent=encoded.out("LATENT"), width=330,
    )  # fmt: skip
    settings = graph.add("SemEdit_GuiderSettings", 2, background_keep=0.5)
    guider = graph.add(
        "SemEdit_PromptToPromptGuider", 3, model=concept.out("MODEL"), clip=concept.out("CLIP"),
        inversion=inversion.out("inversion"), source_text=source, target_text="a photo of a embedding:my_concept",
        cfg=5.0, self_fraction=0.4, mode="replace", blend_words="cat, embedding:my_concept",
        settings=settings.out("settings"), width=330,
    )  # fmt: skip
    sampler = graph.add("KSamplerSelect", 3, sampler_name="euler")
    sampled = graph.add(
        "SamplerCustomAdvanced", 4, noise=inversion.out("noise"), guider=guider.out("guider"),
        sampler=sampler.out("SAMPLER"), sigmas=inversion.out("sigmas"), latent_image=inversion.out("noise latent"),
    )  # fmt: skip
    edited = show(
        graph, 4, sampled.out("output"), loader.out("VAE"), "sd15_concept_edit", "Edited image", picture.out("IMAGE")
    )
    graph.add("PreviewImage", 5, title="Original", images=picture.out("IMAGE"))
    edit_report(graph, 6, picture.out("IMAGE"), edited)
    graph.enclose(
        "Put Your Concept in",
        (guider, "source_text"), (guider, "target_text"), (guider, "blend_words"), (guider, "cfg"),
        (guider, "self_fraction"), (settings, "background_keep"),
        also=(prompt, concept),
    )  # fmt: skip


#: Lines of the demo's several edits.
SEVERAL = "wearing glasses @ 0.8\nwith long red hair @ 0.5"

GRAPHS: dict[str, Callable[[Graph], None]] = {
    describe.__name__: describe
    for describe in (demo_prompt_to_prompt, demo_masactrl, demo_plug_and_play, demo_several_edits, sd15_concept_edit)
}
