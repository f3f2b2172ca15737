"""The shipped workflows, described once: what is placed and wired, in columns from left to right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graph_builder import Graph
    from graph_parts import Node, Output

#: The counterfactual pair of the demo's word edit.
PAIR = "glasses: none to glasses"
#: What the made-up picture shows.
MADE_UP = (
    "a portrait of a person, tan skin, short brown hair, smiling, without glasses, in a green sweater, blue background"
)


def demo_source(graph: Graph, pictures: str, number: int) -> tuple[Node, Node, Output, Output]:
    """Columns 0 and 1 of every demo workflow: model, picture, prompt, latent."""
    model = graph.add("SemEdit_LoadDemoModel", 0)
    picture = graph.add("SemEdit_LoadDemoImage", 0, pictures=pictures, number=number)
    prompt = graph.add(
        "CLIPTextEncode", 1, title="Source prompt (caption)", clip=model.out("CLIP"), text=picture.out("caption")
    )
    encoded = graph.add("VAEEncode", 1, pixels=picture.out("image"), vae=model.out("VAE"))
    return model, picture, prompt.out("CONDITIONING"), encoded.out("LATENT")


def rebuild(graph: Graph, column: int, model: Output, positive: Output, inversion: Node) -> Output:
    """Sample from the inverted noise with stock nodes; returns the LATENT."""
    guider = graph.add("BasicGuider", column, model=model, conditioning=positive)
    sampler = graph.add("KSamplerSelect", column, sampler_name="euler")
    sampled = graph.add(
        "SamplerCustomAdvanced",
        column,
        noise=inversion.out("noise"),
        guider=guider.out("GUIDER"),
        sampler=sampler.out("SAMPLER"),
        sigmas=inversion.out("sigmas"),
        latent_image=inversion.out("noise latent"),
    )
    return sampled.out("output")


def show(
    graph: Graph, column: int, latent: Output, vae: Output, name: str, title: str, photo: Output | None = None
) -> Output:
    """Decode, bring to the size of a person's ``photo`` where there is one, and save; returns the IMAGE."""
    image = graph.add("VAEDecode", column, samples=latent, vae=vae).out("IMAGE")
    if photo is not None:
        image = graph.add("SemEdit_RestorePhotoSize", column, photo=photo, edited=image).out("picture")
    graph.add("SaveImage", column, title=title, images=image, filename_prefix=f"semantic_editing/{name}")
    return image


def edit_report(graph: Graph, column: int, before: Output, after: Output, width: int = 680, **more: Any) -> None:
    """What changed and what stayed, as the last column of a workflow; its numbers come after all others."""
    report = graph.add(
        "SemEdit_EditReport",
        column,
        title="What changed, what stayed",
        before=before,
        after=after,
        width=width,
        height=520,
        **more,
    )
    graph.add("PreviewAny", column, title="Figures of the edit", source=report.out("report"), width=width, height=320)


def invert_reconstruct(graph: Graph, inversion_type: str, name: str, plot_title: str) -> tuple[Output, Output]:
    """Image -> noise -> the same image, with plots; returns the image and the rebuilt one."""
    model, picture, positive, latent = demo_source(graph, "portraits", 0)
    inversion = graph.add(inversion_type, 2, model=model.out("MODEL"), positive=positive, latent=latent, width=330)
    graph.add("PreviewAny", 2, title="Report", source=inversion.out("report"), width=330, height=180)
    again = rebuild(graph, 3, model.out("MODEL"), positive, inversion)
    rebuilt = show(graph, 4, again, model.out("VAE"), name, "Rebuilt image")
    graph.add("PreviewImage", 5, title="Original", images=picture.out("image"))
    graph.add("PreviewImage", 5, title=plot_title, images=inversion.out("plot"))
    turned = (
        ("steps", "solver") if inversion_type.endswith("SPDInvInversion") else ("steps", "iterations", "weight_pair")
    )
    graph.enclose("Invert and Rebuild", *((inversion, name) for name in turned), also=(graph.only("CLIPTextEncode"),))
    return picture.out("image"), rebuilt


def demo_invert_reconstruct(graph: Graph) -> None:
    """SPDInv Inversion and stock sampling back."""
    pictures = invert_reconstruct(
        graph, "SemEdit_SPDInvInversion", "demo_invert_reconstruct", "Residual and cost per step"
    )
    graph.note(
        "# Invert and rebuild\n\n**SPDInv Inversion** turns the picture into noise; the stock *SamplerCustomAdvanced* "
        "(euler, cfg 1, "
        "the inversion's own sigmas, the same prompt) makes the same picture from it again.\n\nRun it, then set "
        "*solver* to `ddim` and "
        "compare. Nothing needs to be downloaded.",
        0, title="What this shows", height=250,
    )  # fmt: skip
    edit_report(graph, 6, *pictures)


def demo_noise_regularised(graph: Graph) -> None:
    """Autocorr DDIM Inversion and stock sampling back."""
    pictures = invert_reconstruct(
        graph, "SemEdit_AutocorrDDIMInversion", "demo_noise_regularised", "Noise before and after"
    )
    graph.note(
        "# Noise that looks like noise\n\n**Autocorr DDIM Inversion** (pix2pix-zero) pushes the predicted noise of "
        "every step towards "
        "white noise: uncorrelated neighbours, variance 1. Such noise edits better, at the price of a less exact "
        "rebuild. The report "
        "shows autocorrelation and variance before and after.",
        0, title="What this shows", height=250,
    )  # fmt: skip
    edit_report(graph, 6, *pictures)


def word_edit(
    graph: Graph,
    column: int,
    model: Output,
    clip: Output,
    vae: Output,
    positive: Output,
    latent: Output,
    name: str,
    inverts: str = "SemEdit_SPDInvInversion",
    samples: Mapping[str, Any] = MappingProxyType({}),
    photo: Output | None = None,
    **texts: Any,
) -> tuple[Node, Node, Output]:
    """Inversion, direction and guided sampler; returns the nodes whose pictures and report are to be shown, and the
    edited IMAGE."""
    inversion = graph.add(inverts, column, model=model, positive=positive, latent=latent, width=330)
    direction = graph.add("SemEdit_SentenceEditDirection", column - 1, clip=clip, **texts)
    applied = graph.add(
        "SemEdit_ApplyEditDirection",
        column + 1,
        conditioning=positive,
        edit_direction=direction.out("edit direction"),
        clip=clip,
    )
    edited = graph.add(
        "SemEdit_CrossAttnGuidedSampler", column + 1, model=model, inversion=inversion.out("inversion"),
        target=applied.out("conditioning"), width=330, **samples,
    )  # fmt: skip
    graph.add("PreviewAny", column + 1, title="Report", source=edited.out("report"), width=330, height=180)
    image = show(graph, column + 2, edited.out("latent"), vae, name, "Edited image", photo)
    return inversion, edited, image


def offer_word_edit(
    graph: Graph,
    picture: list[tuple[Node, str]],
    also: tuple[Node, ...],
    title: str = "Edit Photo by Words",
    inverts: str = "SemEdit_SPDInvInversion",
) -> None:
    """The word edit behind one node, and as an App: the ``picture``'s widgets, the words, two sliders."""
    direction, applied = graph.only("SemEdit_SentenceEditDirection"), graph.only("SemEdit_ApplyEditDirection")
    sampler, inversion = graph.only("SemEdit_CrossAttnGuidedSampler"), graph.only(inverts)
    graph.enclose(
        "Edit Photo by Words",
        (direction, "source", "what it shows"), (direction, "target", "what you want"), (applied, "strength"),
        (sampler, "cfg"), (sampler, "guidance"), (inversion, "steps"), also=also,
    )  # fmt: skip
    graph.app(
        [*picture, (direction, "source"), (direction, "target"), (applied, "strength"), (sampler, "guidance")],
        [graph.only("Edited image")],
    )


def demo_word_edit(graph: Graph) -> None:
    """A face gets glasses, beside the true answer."""
    model, picture, positive, latent = demo_source(graph, PAIR, 0)
    *_, edited = word_edit(
        graph, 2, model.out("MODEL"), model.out("CLIP"), model.out("VAE"), positive, latent, "demo_word_edit",
        source="without glasses", target="wearing glasses", mode="words", bank="portrait",
    )  # fmt: skip
    graph.add("PreviewImage", 5, title="Original", images=picture.out("image"))
    graph.add("PreviewImage", 5, title="True edited image (for comparison)", images=picture.out("edited image"))
    graph.note(
        "# Edit by words\n\n1. **SPDInv Inversion** finds the picture's noise.\n2. **Sentence Edit Direction** finds "
        "the way from "
        "*without glasses* to *wearing glasses* in the text encoder.\n3. **Cross-Attn Guided Sampler** "
        "makes the edited picture and holds the "
        "layout.\n\nThe demo world knows the true answer; it is shown beside the edit. Try another pair and its words. "
        "The edit is too weak: raise *cfg*; it changes too much: raise *guidance*.",
        0, title="What this shows", height=290,
    )  # fmt: skip
    edit_report(graph, 6, picture.out("image"), edited, true_edit=picture.out("edited image"))
    offer_word_edit(graph, [(picture, "pictures"), (picture, "number")], (graph.only("CLIPTextEncode"),))


def demo_pix2pix_zero(graph: Graph) -> None:
    """The paper's whole method: regularised inversion, direction and guidance."""
    model, picture, positive, latent = demo_source(graph, PAIR, 1)
    inversion, _, edited = word_edit(
        graph, 2, model.out("MODEL"), model.out("CLIP"), model.out("VAE"), positive, latent, "demo_pix2pix_zero",
        "SemEdit_AutocorrDDIMInversion", {"guidance": 0.13, "local_fraction": 0.0},
        source="without glasses", target="wearing glasses", mode="words", bank="portrait",
    )  # fmt: skip
    graph.add("PreviewImage", 5, title="Original", images=picture.out("image"))
    graph.add("PreviewImage", 5, title="True edited image (for comparison)", images=picture.out("edited image"))
    graph.add("PreviewImage", 5, title="Noise before and after", images=inversion.out("plot"))
    graph.note(
        "# pix2pix-zero, whole\n\n1. **Autocorr DDIM Inversion** finds noise whose pixels do not know each other "
        "(*L_auto*).\n2. **Sentence Edit Direction** finds the way from *without glasses* to *wearing glasses* in the "
        "text encoder.\n3. **Cross-Attn Guided Sampler** edits and holds the cross-attention maps (*L_xa*).\n\n*Edit "
        "by words* does the same with **SPDInv Inversion**, which rebuilds the picture more exactly. Set *guidance* to "
        "0 to see the direction alone; *local_fraction*, which is 0 here, is not the paper's.",
        0, title="What this shows", height=290,
    )  # fmt: skip
    edit_report(graph, 6, picture.out("image"), edited, true_edit=picture.out("edited image"))
    demo = [(picture, "pictures"), (picture, "number")]
    offer_word_edit(graph, demo, (graph.only("CLIPTextEncode"),), "pix2pix-zero", "SemEdit_AutocorrDDIMInversion")


def demo_synthetic_edit(graph: Graph) -> None:
    """A picture that the model makes up gets glasses: no inversion."""
    model = graph.add("SemEdit_LoadDemoModel", 0)
    prompts = {
        title: graph.add("CLIPTextEncode", 1, title=title, clip=model.out("CLIP"), text=text).out("CONDITIONING")
        for title, text in (("Prompt of the picture", MADE_UP), ("Negative prompt (empty)", ""))
    }
    positive, negative = prompts.values()
    empty = graph.add("EmptyLatentImage", 1)
    empty.inputs |= {"width": 128, "height": 128}
    made = graph.add(
        "SemEdit_GenerateReference", 2, model=model.out("MODEL"), positive=positive, negative=negative,
        empty_latent=empty.out("LATENT"), seed=2, cfg=3.0, width=330,
    )  # fmt: skip
    drawn = graph.add("VAEDecode", 2, samples=made.out("latent"), vae=model.out("VAE"))
    direction = graph.add(
        "SemEdit_SentenceEditDirection", 2, clip=model.out("CLIP"),
        source="without glasses", target="wearing glasses", mode="words", bank="portrait",
    )  # fmt: skip
    applied = graph.add(
        "SemEdit_ApplyEditDirection", 3, conditioning=positive, edit_direction=direction.out("edit direction"),
        clip=model.out("CLIP"),
    )  # fmt: skip
    sampled = graph.add(
        "SemEdit_CrossAttnGuidedSampler", 3, model=model.out("MODEL"), inversion=made.out("inversion"),
        target=applied.out("conditioning"), cfg=3.0, guidance=0.15, width=330,
    )  # fmt: skip
    graph.add("PreviewAny", 3, title="Report", source=sampled.out("report"), width=330, height=180)
    edited = show(graph, 4, sampled.out("latent"), model.out("VAE"), "demo_synthetic_edit", "Edited image")
    graph.add("PreviewImage", 5, title="Original", images=drawn.out("IMAGE"))
    graph.note(
        "# Edit a picture that the model makes up\n\n1. **Reference From Noise** makes a picture from a seed and keeps "
        "the way there, so nothing needs to be inverted.\n2. **Sentence Edit Direction** and **Cross-Attn Guided "
        "Sampler** edit it, with the paper's *guidance* for such pictures, 0.15.\n\nUse the same *cfg* in both: "
        "without the direction (*strength* 0) the sampler then gives the very picture again.",
        0, title="What this shows", height=290,
    )  # fmt: skip
    edit_report(graph, 6, drawn.out("IMAGE"), edited)
    graph.enclose(
        "Make a Picture and Edit It",
        (made, "seed"), (made, "cfg"), (direction, "source", "what it shows"), (direction, "target", "what you want"),
        (applied, "strength"), (sampled, "guidance"),
        also=(graph.only("Prompt of the picture"), graph.only("Negative prompt (empty)")),
    )  # fmt: skip


def checkpoint_loader(graph: Graph, repository: str, checkpoint: str) -> Node:
    """Load Checkpoint in column 0, with the address from which the UI offers a missing file."""
    url = f"https://huggingface.co/{repository}/resolve/main/{checkpoint}?download=true"
    return graph.add(
        "CheckpointLoaderSimple",
        0,
        ckpt_name=checkpoint,
        models=[{"name": checkpoint, "url": url, "directory": "checkpoints"}],
    )


def checkpoint_edit(graph: Graph, repository: str, checkpoint: str, name: str, text: str) -> None:
    """The same edit on a real checkpoint and the person's own picture."""
    loader = checkpoint_loader(graph, repository, checkpoint)
    picture = graph.add("LoadImage", 0, image="example.png")
    graph.note(text, 0, title="Before you run", height=290)
    prompt = graph.add(
        "CLIPTextEncode",
        1,
        title="Source prompt: describe your image",
        clip=loader.out("CLIP"),
        text="a photo of a cat",
    )
    encoded = graph.add("VAEEncode", 1, pixels=picture.out("IMAGE"), vae=loader.out("VAE"))
    *_, edited = word_edit(
        graph,
        2,
        loader.out("MODEL"),
        loader.out("CLIP"),
        loader.out("VAE"),
        prompt.out("CONDITIONING"),
        encoded.out("LATENT"),
        name,
        photo=picture.out("IMAGE"),
        source="cat",
        target="dog",
        mode="words",
    )
    graph.add("PreviewImage", 5, title="Original", images=picture.out("IMAGE"))
    edit_report(graph, 6, picture.out("IMAGE"), edited)
    offer_word_edit(graph, [(picture, "image"), (prompt, "text")], (prompt,))


def sd15_word_edit(graph: Graph) -> None:
    """Cat to dog on Stable Diffusion 1.5."""
    checkpoint_edit(
        graph, "Comfy-Org/stable-diffusion-v1-5-archive", "v1-5-pruned-emaonly-fp16.safetensors", "sd15_word_edit",
        "# Edit your own picture with SD 1.5\n\nPut `v1-5-pruned-emaonly-fp16.safetensors` (or any SD 1.x checkpoint) "
        "into "
        "`models/checkpoints`.\n\n1. Load a picture of about 512 x 512; it comes back at its own "
        "size.\n2. Describe it in **Source prompt**.\n3. "
        "Write the word to "
        "replace and its replacement into **Sentence Edit Direction**.\n\nThe edit is too weak: raise *cfg* "
        "(the paper's is 5) or *strength*, lower *guidance*. It changes too much: the opposite. "
        "Out of memory: *resolution* `half`.",
    )  # fmt: skip


def sdxl_word_edit(graph: Graph) -> None:
    """Cat to dog on SDXL."""
    checkpoint_edit(
        graph, "stabilityai/stable-diffusion-xl-base-1.0", "sd_xl_base_1.0.safetensors", "sdxl_word_edit",
        "# Edit your own picture with SDXL\n\nPut `sd_xl_base_1.0.safetensors` (or any SDXL checkpoint) into "
        "`models/checkpoints`.\n\n"
        "1. Load a picture of about 1024 x 1024; it comes back at its own "
        "size.\n2. Describe it in **Source prompt**.\n3. Write the word to replace and "
        "its replacement "
        "into **Sentence Edit Direction**.\n\nGradients through SDXL need much memory: choose *resolution* `quarter` "
        "on cards below 24 GB, "
        "or a smaller picture. The edit is too weak: raise *cfg* (the paper's is 5).",
    )  # fmt: skip


GRAPHS: dict[str, Callable[[Graph], None]] = {
    describe.__name__: describe
    for describe in (
        demo_invert_reconstruct,
        demo_word_edit,
        demo_noise_regularised,
        demo_pix2pix_zero,
        demo_synthetic_edit,
        sd15_word_edit,
        sdxl_word_edit,
    )
}
