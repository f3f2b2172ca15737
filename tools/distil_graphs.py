"""The shipped workflows of distilled edits, described once (see workflow_graphs.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from workflow_graphs import PAIR, edit_report, word_edit

if TYPE_CHECKING:
    from graph_builder import Graph

#: Pairs, and steps of the edit that makes them: so few that it takes a minute.
PAIRS, EDIT_STEPS, TRAIN_STEPS = 8, 10, 40
#: Light faces, on which glasses show.
FACE, OTHER_FACE = 5, 20
TEXTS = ("a portrait of a person, without glasses", "a portrait of a person, wearing glasses")


def demo_distil_edit(graph: Graph) -> None:
    """A face gets glasses in one forward of a small network, beside the true answer."""
    picture = graph.add("SemEdit_LoadDemoImage", 0, pictures=PAIR, number=FACE)
    edited = graph.add("SemEdit_DistilledEdit", 1, image=picture.out("image"), edit_file="demo: glasses", width=330)
    graph.add("PreviewAny", 1, title="Report", source=edited.out("report"), width=330, height=180)
    graph.add(
        "SaveImage",
        2,
        title="Edited image",
        images=edited.out("image"),
        filename_prefix="semantic_editing/demo_distil_edit",
    )
    graph.add("PreviewImage", 3, title="Original", images=picture.out("image"))
    graph.add("PreviewImage", 3, title="True edited image (for comparison)", images=picture.out("edited image"))
    graph.note(
        "# An edit in milliseconds\n\n**Distilled Edit** puts glasses on in one pass of a small network. It learned "
        "that from pictures that *11 Edit Photo by Words - demo* had made; *49 Teach a Network an "
        "Edit - demo* shows how. No "
        "diffusion model runs, and what the edit does not touch stays the photo's own.\n\nTry *demo: red hair* with "
        "the pictures of *hair color: black to red*.",
        0, title="What this shows", height=270,
    )  # fmt: skip
    edit_report(graph, 4, picture.out("image"), edited.out("image"), true_edit=picture.out("edited image"))
    graph.group()


def demo_distil_train(graph: Graph) -> None:
    """Pairs by the word edit, and a network that learns from them."""
    model = graph.add("SemEdit_LoadDemoModel", 0)
    pictures = graph.add("SemEdit_LoadDemoImage", 0, pictures=PAIR, number=1, count=PAIRS)
    prompt = graph.add(
        "CLIPTextEncode", 1, title="Source prompt (for all pictures)", clip=model.out("CLIP"), text=TEXTS[0]
    )
    encoded = graph.add("VAEEncode", 1, pixels=pictures.out("image"), vae=model.out("VAE"))
    inversion, _, decoded = word_edit(
        graph, 2, model.out("MODEL"), model.out("CLIP"), model.out("VAE"), prompt.out("CONDITIONING"),
        encoded.out("LATENT"), "demo_distil_train", source="without glasses", target="wearing glasses", mode="words",
        bank="portrait",
    )  # fmt: skip
    inversion.inputs["steps"] = EDIT_STEPS
    scorer = graph.add("SemEdit_LoadCLIPScorer", 4, clip_model="demo model")
    settings = graph.add("SemEdit_DistilTrainingSettings", 4, check_every=10)
    trainer = graph.add(
        "SemEdit_DistilEditTrainer",
        5,
        filename="demo_my_glasses",
        overwrite=True,
        source_text=TEXTS[0],
        target_text=TEXTS[1],
        steps=TRAIN_STEPS,
        before=pictures.out("image"),
        after=decoded,
        clip_scorer=scorer.out("clip scorer"),
        settings=settings.out("settings"),
        width=330,
    )
    graph.add("PreviewAny", 5, title="Training", source=trainer.out("report"), width=330, height=220)
    graph.add("PreviewImage", 6, title="Samples", images=trainer.out("samples"))
    graph.add("PreviewImage", 6, title="Loss and PSNR", images=trainer.out("plot"))
    face = graph.add("SemEdit_LoadDemoImage", 6, pictures=PAIR, number=OTHER_FACE)
    edited = graph.add(
        "SemEdit_DistilledEdit",
        7,
        image=face.out("image"),
        edit_file="none",
        distilled_edit=trainer.out("distilled edit"),
        width=330,
    )
    graph.add("PreviewImage", 7, title="Another face, by what was learned", images=edited.out("image"))
    graph.note(
        f"# Teach a small network an edit\n\n1. The word edit makes {PAIRS} pairs in {EDIT_STEPS} steps each.\n2. "
        f"**Distil Edit Trainer** learns from those that succeeded, for {TRAIN_STEPS} steps.\n3. **Distilled Edit** "
        "edits another face with it.\n\nThat only shows the way; a hundred pairs and 500 steps made *demo: "
        "glasses*.\n\n*overwrite* is on, so that you can run it again: it replaces what you have of that name.",
        0, title="What this shows", height=280,
    )  # fmt: skip
    direction = graph.only("SemEdit_SentenceEditDirection")
    graph.enclose(
        "Teach a Network the Edit",
        (direction, "source", "what they show"), (direction, "target", "what you want"), (inversion, "steps"),
        (trainer, "filename"), (trainer, "overwrite"), (trainer, "steps", "training steps"), also=(prompt,),
    )  # fmt: skip


GRAPHS: dict[str, Callable[[Graph], None]] = {
    describe.__name__: describe for describe in (demo_distil_edit, demo_distil_train)
}
