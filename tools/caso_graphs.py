"""The shipped workflows of CASO, described like those of workflow_graphs.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from workflow_graphs import checkpoint_loader, edit_report, show

from semantic_editing.core.demo.caso_recipes import RECIPES

if TYPE_CHECKING:
    from graph_builder import Graph
    from graph_parts import Node, Output

#: The counterfactual pair that the demo edits, and the first of the pictures to learn from, which are of other faces.
PAIR, FIRST_TO_LEARN_FROM = "glasses: none to glasses", 48


def demo_caso_train(graph: Graph) -> None:
    """Glasses, learned from 75 pictures that have them and 75 that have none, as a person's two folders would be."""
    model = graph.add("SemEdit_LoadDemoModel", 0)
    having, without = (
        graph.add("SemEdit_LoadDemoImage", 0, title=f"Pictures {word} glasses", pictures=f"{word} glasses", count=75)
        for word in ("with", "without")
    )
    scorer = graph.add("SemEdit_LoadCLIPScorer", 0, title="A CLIP that judges", clip_model="demo model")
    trainer = graph.add(
        "SemEdit_CASOEmbeddingTrainer",
        1,
        model=model.out("MODEL"),
        clip=model.out("CLIP"),
        vae=model.out("VAE"),
        having=having.out("image"),
        without=without.out("image"),
        second_opinion=scorer.out("clip scorer"),
        kind="large",
        start_words="face",
        filename="demo_glasses",
        overwrite=True,
        width=360,
    )
    graph.add("PreviewImage", 2, title="Held-out pictures, edited", images=trainer.out("samples"))
    graph.add("PreviewImage", 2, title="Loss and accuracy", images=trainer.out("plot"))
    graph.add("PreviewAny", 2, title="Report", source=trainer.out("report"), height=180)
    graph.add("PreviewAny", 2, title="Write this into any prompt", source=trainer.out("prompt text"), height=120)
    graph.group()
    graph.note(
        "# Learn an attribute from two folders of pictures\n\n**CASO Embedding Trainer** learns *glasses* from 75 "
        "pictures that have them and 75 that have none; no captions, no classifier, and of words only where to begin: "
        "*start_words* `face`. It takes some minutes on a CPU. 16 of the pictures without are not learned from but "
        "edited, and a CLIP that taught nothing says in how many it sees glasses.\n\nThe result is a textual "
        "inversion: `embedding:demo_glasses` works in the stock *CLIP Text Encode*, and *CASO Embedding Loader* lists "
        "it for *21 Turn an Attribute Up or Down - demo*. *overwrite* is on, so that you can run it again: it replaces "
        "what you have of that name.\n\nTry `with a smile` and `without a smile`, *kind* `fine`; `red hair`, *kind* "
        "`colour`, *start_words* `hair`, *count* 60. With your own pictures: *28 Learn an Attribute - SD 1.5*.",
        0, title="What this shows", height=260,
    )  # fmt: skip


def demo_caso_texts(graph: Graph) -> None:
    """Glasses, learned from a CLIP that is told in words what to look for."""
    recipe = RECIPES["glasses"].settings()
    model = graph.add("SemEdit_LoadDemoModel", 0)
    pictures = graph.add(
        "SemEdit_LoadDemoImage",
        0,
        title="Pictures to learn from",
        pictures="everyone",
        number=FIRST_TO_LEARN_FROM,
        count=96,
    )
    scorer = graph.add("SemEdit_LoadCLIPScorer", 0, clip_model="demo model")
    classifier = graph.add(
        "SemEdit_AttributeClassifierFromTexts",
        1,
        clip_scorer=scorer.out("clip scorer"),
        attribute="glasses",
        text_with="a portrait of a person, wearing glasses",
        text_without="a portrait of a person, without glasses",
        others="mouth: a portrait of a person, smiling | a portrait of a person, sad\n"
        "hair: a person, black hair | a person, red hair | a person, blond hair | a person, brown hair",
        images=pictures.out("image"),
        width=330,
    )
    settings = graph.add(
        "SemEdit_CASOTrainingSettings",
        1,
        steps=150,
        noise_level=recipe.noise_level,
        band=recipe.noise_level_jitter,
        learning_rate=recipe.learning_rate,
        cfg=recipe.cfg,
        tokens=recipe.tokens,
        attribute="glasses",
        checkpointing=False,
        targets="yes",
        width=330,
    )
    trainer = graph.add(
        "SemEdit_CASOEmbeddingTrainer",
        2,
        model=model.out("MODEL"),
        clip=model.out("CLIP"),
        vae=model.out("VAE"),
        attribute_classifier=classifier.out("classifier"),
        without=pictures.out("image"),
        settings=settings.out("settings"),
        start_words=recipe.start_words,
        filename="demo_glasses_by_texts",
        overwrite=True,
        width=360,
    )
    graph.add("PreviewAny", 2, title="What it sees", source=classifier.out("report"), width=360, height=200)
    graph.add("PreviewImage", 3, title="Held-out pictures, edited", images=trainer.out("samples"))
    graph.add("PreviewImage", 3, title="Loss and accuracy", images=trainer.out("plot"))
    graph.add("PreviewAny", 3, title="Report", source=trainer.out("report"), height=180)
    graph.note(
        "# Learn an attribute by telling a CLIP what it is\n\nNo classifier, no sorted folders: **Attribute Classifier "
        "from Texts** picks the text that fits a picture best. *others* names what is to stay as it is. **CASO "
        "Embedding Trainer** learns from its answers on 96 pictures.\n\nWhat teaches also judges here, so look "
        "at the pictures and not at the success that the report names.\n\n*overwrite* is on, so that you can run it "
        "again: it replaces what you have of that name.",
        0, title="What this shows", height=280,
    )  # fmt: skip
    graph.enclose(
        "Learn What a CLIP Sees",
        (classifier, "attribute"), (classifier, "text_with"), (classifier, "text_without"), (classifier, "others"),
        (trainer, "start_words"), (trainer, "filename"), (trainer, "overwrite"), (trainer, "resume"),
    )  # fmt: skip


def sd15_caso_train(graph: Graph) -> None:
    """The person's own two folders of pictures, on Stable Diffusion 1.5."""
    loader = checkpoint_loader(graph, "Comfy-Org/stable-diffusion-v1-5-archive", "v1-5-pruned-emaonly-fp16.safetensors")
    graph.note(
        "# Learn an attribute from your two folders\n\nPut `v1-5-pruned-emaonly-fp16.safetensors` (or any SD 1.x "
        "checkpoint) into `models/checkpoints`.\n\n1. Make two folders in ComfyUI's `input` folder: pictures that "
        "have it and pictures that have it not, about 75 each, one exact class a folder. Look-alikes (sunglasses for "
        "glasses) go into a third.\n2. Press `R` and choose them.\n3. Choose *kind*: "
        "`fine` for a small part, `large` for glasses or a beard, `colour`, `species`. *start_words*: a word for what "
        "changes.\n\nThe report first tells about how long it takes and how much memory. Cancel keeps the best so far; "
        "*resume* goes on. Then `embedding:my_attribute` works in prompts, and `sd15_caso_edit` edits photos with it.",
        0, title="Before you run", height=330,
    )  # fmt: skip
    trainer = graph.add(
        "SemEdit_CASOEmbeddingTrainer",
        1,
        model=loader.out("MODEL"),
        clip=loader.out("CLIP"),
        vae=loader.out("VAE"),
        kind="large",
        start_words="face",
        filename="my_attribute",
        width=360,
    )
    graph.add("PreviewImage", 2, title="Held-out pictures, edited", images=trainer.out("samples"))
    graph.add("PreviewImage", 2, title="Loss and accuracy", images=trainer.out("plot"))
    graph.add("PreviewAny", 2, title="Report", source=trainer.out("report"), height=240)
    graph.add("PreviewAny", 2, title="Write this into any prompt", source=trainer.out("prompt text"), height=120)
    graph.group()


def caso_source(graph: Graph) -> tuple[Node, Node, Output]:
    """Columns 0 and 1 of the demo edits: model, picture, latent."""
    model = graph.add("SemEdit_LoadDemoModel", 0)
    picture = graph.add("SemEdit_LoadDemoImage", 0, pictures=PAIR, number=0)
    encoded = graph.add("VAEEncode", 1, pixels=picture.out("image"), vae=model.out("VAE"))
    return model, picture, encoded.out("LATENT")


def edit(
    graph: Graph,
    column: int,
    loader: Node,
    latent: Output,
    embedding: Output,
    name: str,
    strength: float,
    window: str,
    focus: float,
    strip: int = 0,
) -> Output:
    """Edit sampler, its report and its picture; returns the edited IMAGE."""
    painter = {"vae": loader.out("VAE")} if strip else {}
    edited = graph.add(
        "SemEdit_CASOEditSampler",
        column,
        model=loader.out("MODEL"),
        clip=loader.out("CLIP"),
        semantic_embedding=embedding,
        latent=latent,
        strength=strength,
        window=window,
        interpolate=strip,
        focus=focus,
        width=330,
        **painter,
    )
    graph.add("PreviewAny", column, title="Report", source=edited.out("report"), width=330, height=160)
    image = show(graph, column + 1, edited.out("latent"), loader.out("VAE"), name, "Edited image")
    if strip:
        graph.add("PreviewImage", column + 1, title="From minus to plus", images=edited.out("strip"))
    return image


def enclose_attribute(graph: Graph) -> None:
    """The attribute's edit behind one node."""
    sampler, loaded = graph.only("SemEdit_CASOEditSampler"), graph.only("SemEdit_CASOEmbeddingLoader")
    graph.enclose(
        "Turn an Attribute Up or Down",
        (loaded, "embedding_file", "attribute"), (sampler, "strength"), (sampler, "window"), (sampler, "focus"),
        (sampler, "steps"), (sampler, "interpolate", "pictures from minus to plus"),
    )  # fmt: skip


def offer_attribute(graph: Graph, picture: list[tuple[Node, str]]) -> None:
    """The attribute's edit behind one node, and as an App: the ``picture``'s widgets, the attribute, its strength."""
    sampler, loaded = graph.only("SemEdit_CASOEditSampler"), graph.only("SemEdit_CASOEmbeddingLoader")
    if graph.box is None:
        enclose_attribute(graph)
    shown = [graph.only("Edited image"), graph.only("From minus to plus")]
    graph.app([*picture, (loaded, "embedding_file"), (sampler, "strength"), (sampler, "window")], shown)


def demo_caso_edit(graph: Graph) -> None:
    """A bundled embedding turned up and down."""
    model, picture, latent = caso_source(graph)
    loaded = graph.add("SemEdit_CASOEmbeddingLoader", 1, clip=model.out("CLIP"), embedding_file="demo: glasses")
    edited = edit(
        graph, 2, model, latent, loaded.out("embedding"), "demo_caso_edit", DEMO_STRENGTH, "middle", DEMO_FOCUS, strip=5
    )
    graph.add("PreviewImage", 4, title="Original", images=picture.out("image"))
    graph.add("PreviewImage", 4, title="True edited image (for comparison)", images=picture.out("edited image"))
    graph.note(
        "# Turn an attribute up and down\n\n**CASO Embedding Loader** brings *glasses*, learned from a classifier (see "
        "*29 Learn an Attribute - demo*). **CASO Edit Sampler** guides the picture's own "
        "trajectory by it.\n\n*strength* "
        "0 rebuilds "
        "the picture, below "
        "0 leads away from glasses; the strip shows all five.\n\nThe demo world knows the true answer; it is shown "
        "beside the edit.",
        0, title="What this shows", height=270,
    )  # fmt: skip
    edit_report(graph, 5, picture.out("image"), edited, true_edit=picture.out("edited image"))
    offer_attribute(graph, [(picture, "pictures"), (picture, "number")])


def demo_caso_multi(graph: Graph) -> None:
    """Two attributes at once, each with a strength of its own."""
    model, picture, latent = caso_source(graph)
    first, second = (
        graph.add(
            "SemEdit_CASOEmbeddingLoader",
            1,
            title=f"Load {name}",
            clip=model.out("CLIP"),
            embedding_file=f"demo: {name}",
        )
        for name in ("glasses", "beard")
    )
    both = graph.add(
        "SemEdit_CASOCombine",
        2,
        first=first.out("embedding"),
        second=second.out("embedding"),
        first_strength=0.6,
        second_strength=1.0,
    )
    edited = edit(
        graph, 3, model, latent, both.out("embedding"), "demo_caso_multi", DEMO_STRENGTH_OF_TWO, "middle", DEMO_FOCUS
    )
    graph.add("PreviewImage", 5, title="Original", images=picture.out("image"))
    graph.note(
        "# Two attributes at once\n\n**CASO Combine** joins *glasses* and *beard*. Each has its own strength, which "
        "multiplies the "
        "sampler's; below 0 removes.\n\nEmbeddings of equal strength share one prompt, as in the paper; different ones "
        "cost an evaluation "
        "each.",
        0, title="What this shows", height=220,
    )  # fmt: skip
    edit_report(graph, 6, picture.out("image"), edited)
    sampler = graph.only("SemEdit_CASOEditSampler")
    graph.enclose(
        "Two Attributes",
        (first, "embedding_file", "first"), (second, "embedding_file", "second"), (both, "first_strength"),
        (both, "second_strength"), (sampler, "strength"), (sampler, "window"), (sampler, "focus"), (sampler, "steps"),
    )  # fmt: skip


def sd15_caso_edit(graph: Graph) -> None:
    """The person's own embedding on the person's own picture."""
    loader = checkpoint_loader(graph, "Comfy-Org/stable-diffusion-v1-5-archive", "v1-5-pruned-emaonly-fp16.safetensors")
    picture = graph.add("LoadImage", 0, image="example.png")
    graph.note(
        "# Edit your own picture with SD 1.5\n\nPut `v1-5-pruned-emaonly-fp16.safetensors` (or any SD 1.x checkpoint) "
        "into "
        "`models/checkpoints`, and an embedding into `models/embeddings`: one you made with **CASO Embedding Trainer** "
        "(as in "
        "`sd15_caso_train`), a published "
        "CASO `.pt`, or any "
        "textual inversion.\n\n1. Load a picture of about 512 x 512; it comes back at its own "
        "size.\n2. Choose the embedding. One of two folders brings its own *window* (`learned`); for others `fine` is "
        "for details of "
        "faces, `species` for cat to dog.\n3. Too weak: raise *strength*.",
        0, title="Before you run", height=290,
    )  # fmt: skip
    loaded = graph.add(
        "SemEdit_CASOEmbeddingLoader", 1, clip=loader.out("CLIP"), embedding_file="my_attribute.safetensors"
    )
    edited = graph.add(
        "SemEdit_CASOEditSampler",
        2,
        model=loader.out("MODEL"),
        clip=loader.out("CLIP"),
        semantic_embedding=loaded.out("embedding"),
        photo=picture.out("IMAGE"),
        vae=loader.out("VAE"),
        strength=5.0,
        window="learned",
        interpolate=5,
        width=330,
    )
    graph.add("PreviewAny", 2, title="Report", source=edited.out("report"), width=330, height=160)
    image = edited.out("picture")
    graph.add("SaveImage", 3, title="Edited image", images=image, filename_prefix="semantic_editing/sd15_caso_edit")
    graph.add("PreviewImage", 3, title="From minus to plus", images=edited.out("strip"))
    graph.add("PreviewImage", 4, title="Original", images=picture.out("IMAGE"))
    edit_report(graph, 5, picture.out("IMAGE"), image)
    enclose_attribute(graph)


#: Found by eye on the demo model.
DEMO_STRENGTH, DEMO_STRENGTH_OF_TWO = 3.0, 5.0
DEMO_FOCUS = 0.1  # of SEGA: measured to leave more of the rest alone

GRAPHS: dict[str, Callable[[Graph], None]] = {
    describe.__name__: describe
    for describe in (
        demo_caso_train,
        demo_caso_texts,
        demo_caso_edit,
        demo_caso_multi,
        sd15_caso_train,
        sd15_caso_edit,
    )
}
