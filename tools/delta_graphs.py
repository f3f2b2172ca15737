"""The shipped workflows of DeltaEdit, described once (see workflow_graphs.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from workflow_graphs import edit_report

if TYPE_CHECKING:
    from graph_builder import Graph
    from graph_parts import Node, Output

GLASSES = (
    "glasses: none to glasses",
    0,
    ("a portrait of a person, without glasses", "a portrait of a person, wearing glasses"),
)
#: Image pair that shows an edit, and the face it is done to.
EXAMPLE, FACE = ("background: blue to green", 1), ("background: blue to green", 0)
HAIR = (
    "hair color: black to red",
    1,
    ("a portrait of a person, black hair", "a portrait of a person, red hair"),
)

#: OpenAI's CLIP ViT-B/32 in one file: the name to save it under and its address, at a fixed commit, because the
#: repository's main branch has no safetensors file.
CLIP_FILE = (
    "clip-vit-base-patch32.safetensors",
    "https://huggingface.co/openai/clip-vit-base-patch32/resolve/c237dc49a33fc61debc9276459120b7eac67e7ef/"
    "model.safetensors?download=true",
)

#: Pixels in which the lines of Edit Report's table do not wrap.
REPORT = 780


def inverted(graph: Graph, photo: Output, generator: str = "demo", encoder: str = "demo") -> tuple[Node, Node]:
    """Columns 0 and 1: generator, the face's code and how well it rebuilds; returns generator and inversion."""
    loader = graph.add("SemEdit_StyleGAN2Loader", 0, generator_file=generator)
    inversion = graph.add(
        "SemEdit_InvertToStyleCode",
        1,
        image=photo,
        stylegan2=loader.out("stylegan2"),
        encoder_file=encoder,
        width=310,
    )
    graph.add("PreviewAny", 1, title="How well it is rebuilt", source=inversion.out("report"), width=310, height=180)
    return loader, inversion


def mapped(
    graph: Graph,
    loader: Node,
    inversion: Node,
    photo: Output,
    texts: tuple[str, str] | None,
    mapper: str = "demo",
    clip: str = "demo model",
    clip_url: str = "",
    pair: tuple[Output, Output] | None = None,
) -> tuple[Node, Node]:
    """Column 2: the edit; returns the CLIP's and the mapper's node."""
    offered = [{"name": clip, "url": clip_url, "directory": "clip_vision"}] if clip_url else []
    scorer = graph.add("SemEdit_LoadCLIPScorer", 1, clip_model=clip, models=offered)
    words = {} if texts is None else {"source_text": texts[0], "target_text": texts[1]}
    pictures = {} if pair is None else {"condition_from": pair[0], "condition_to": pair[1]}
    edit = graph.add(
        "SemEdit_DeltaEditMapper",
        2,
        stylegan2=loader.out("stylegan2"),
        style_code=inversion.out("style code"),
        clip_scorer=scorer.out("clip scorer"),
        mapper_file=mapper,
        image=photo,
        width=330,
        **words,
        **pictures,
    )
    graph.add("PreviewImage", 2, title="Where it changed", images=edit.out("heat"), width=330)
    graph.add("PreviewAny", 2, title="Report", source=edit.out("report"), width=330, height=260)
    return scorer, edit


def pasted(graph: Graph, photo: Output, inversion: Node, edit: Node, name: str) -> Node:
    """Column 3: the edit in the photo, saved; returns Paste Face Back."""
    paste = graph.add(
        "SemEdit_PasteFaceBack",
        3,
        photo=photo,
        face_crop=inversion.out("face crop"),
        before=edit.out("before"),
        after=edit.out("image"),
    )
    graph.add(
        "SaveImage", 3, title="Edited image", images=paste.out("image"), filename_prefix=f"semantic_editing/{name}"
    )
    return paste


def offer_face_edit(graph: Graph, picture: list[tuple[Node, str]], *files: tuple[str, str]) -> None:
    """The face edit behind one node, and as an App: the ``picture``'s widgets, two texts, the strength; ``files`` are
    the (node's type, widget) that a person has to choose."""
    edit, inversion = graph.only("SemEdit_DeltaEditMapper"), graph.only("SemEdit_InvertToStyleCode")
    texts = [(edit, "source_text", "the face now"), (edit, "target_text", "what you want")]
    shown = texts if "condition_from" not in edit.inputs else []
    graph.enclose(
        "Face, Edit by Text" if shown else "Face, Edit by Example",
        *shown, (edit, "strength"), (edit, "disentangle"), (inversion, "refine_steps"),
        *((graph.only(kind), name) for kind, name in files),
    )  # fmt: skip
    graph.app(
        [*picture, *((node, name) for node, name, _ in shown), (edit, "strength"), (edit, "disentangle")],
        [graph.only("Edited image")],
    )


def demo_deltaedit_text(graph: Graph) -> None:
    """Glasses by a pair of texts."""
    pictures, number, texts = GLASSES
    picture = graph.add("SemEdit_LoadDemoImage", 0, pictures=pictures, number=number)
    photo = picture.out("image")
    loader, inversion = inverted(graph, photo)
    scorer, edit = mapped(graph, loader, inversion, photo, texts)
    paste = pasted(graph, photo, inversion, edit, "demo_deltaedit_text")
    graph.note(
        "# Edit by two texts\n\n**Invert to Style Code** finds the face in the StyleGAN2's style space; **DeltaEdit "
        "Mapper** moves it the way the second text differs from the first; **Paste Face Back** puts only that "
        "difference into the photo. One mapper does every edit.\n\nTry *target_text* `a portrait of a person, with a "
        "beard` (source `..., clean shaven`), several lines at once, or another *strength*.",
        0, title="What this shows", height=320,
    )  # fmt: skip
    edit_report(
        graph,
        4,
        photo,
        paste.out("image"),
        width=REPORT,
        true_edit=picture.out("edited image"),
        clip_scorer=scorer.out("clip scorer"),
        source_text=texts[0],
        target_text=texts[1],
    )
    offer_face_edit(graph, [(picture, "pictures"), (picture, "number")])


def demo_deltaedit_images(graph: Graph) -> None:
    """An edit shown by two pictures of somebody else."""
    example = graph.add(
        "SemEdit_LoadDemoImage", 0, title="Pair that shows the edit", pictures=EXAMPLE[0], number=EXAMPLE[1]
    )
    picture = graph.add("SemEdit_LoadDemoImage", 0, title="Face to edit", pictures=FACE[0], number=FACE[1])
    photo = picture.out("image")
    loader, inversion = inverted(graph, photo)
    _, edit = mapped(graph, loader, inversion, photo, None, pair=(example.out("image"), example.out("edited image")))
    paste = pasted(graph, photo, inversion, edit, "demo_deltaedit_images")
    graph.note(
        "# Edit by example\n\nTwo pictures of one person, before and after, say what to do to another: their "
        "difference in CLIP takes the place of the texts' (paper, section 5.5.2).\n\nChoose another *pictures* in the "
        "pair's node, such as `top: short to hat`.",
        0, title="What this shows", height=260,
    )  # fmt: skip
    edit_report(graph, 4, photo, paste.out("image"), width=REPORT, true_edit=picture.out("edited image"))
    offer_face_edit(graph, [(picture, "pictures"), (picture, "number")])


def demo_deltaedit_diffusion(graph: Graph) -> None:
    """The same mapper moves a diffusion model."""
    pictures, number, texts = HAIR
    picture = graph.add("SemEdit_LoadDemoImage", 0, pictures=pictures, number=number)
    photo = picture.out("image")
    loader, inversion = inverted(graph, photo)
    scorer, edit = mapped(graph, loader, inversion, photo, texts)
    model = graph.add("SemEdit_StyleDiffusionLoader", 2, style_diffusion_file="demo")
    aligned = inversion.out("aligned")
    encoded = graph.add(
        "SemEdit_StyleDiffusionEncode",
        3,
        style_diffusion=model.out("style diffusion"),
        image=aligned,
        style_code=inversion.out("style code"),
    )
    decoded = graph.add(
        "SemEdit_StyleDiffusionDecode",
        3,
        style_diffusion=model.out("style diffusion"),
        style_code=edit.out("style code"),
        style_noise=encoded.out("noise"),
    )
    paste = graph.add(
        "SemEdit_PasteFaceBack",
        3,
        photo=photo,
        face_crop=inversion.out("face crop"),
        before=aligned,
        after=decoded.out("images"),
    )
    graph.add(
        "SaveImage",
        3,
        title="Edited image",
        images=paste.out("image"),
        filename_prefix="semantic_editing/demo_deltaedit_diffusion",
    )
    graph.note(
        "# DeltaEdit-D\n\nThe style code steers a diffusion model: **Style Diffusion Encode** turns the photo into "
        "noise under its own code, **Decode** draws that noise under the edited one. The noise keeps what the code "
        "does not say.\n\nWire no noise into Decode to see what the code alone says.",
        0, title="What this shows", height=260,
    )  # fmt: skip
    edit_report(
        graph,
        4,
        photo,
        paste.out("image"),
        width=REPORT,
        true_edit=picture.out("edited image"),
        clip_scorer=scorer.out("clip scorer"),
        source_text=texts[0],
        target_text=texts[1],
    )
    offer_face_edit(graph, [(picture, "pictures"), (picture, "number")])


def ffhq_deltaedit(graph: Graph) -> None:
    """A photo with the published networks: FFHQ's generator, e4e, DeltaEdit's mapper, CLIP ViT-B/32."""
    texts = ("face", "face with eyeglasses")
    picture = graph.add("LoadImage", 0, image="example.png")
    photo = picture.out("IMAGE")
    loader, inversion = inverted(graph, photo, "stylegan2-ffhq-config-f.pt", "e4e_ffhq_encode.pt")
    scorer, edit = mapped(graph, loader, inversion, inversion.out("aligned"), texts, "net_face.pth", *CLIP_FILE)
    paste = pasted(graph, photo, inversion, edit, "ffhq_deltaedit")
    graph.note(
        "# Your photo\n\nNeeds four files, see *Models for the other workflows* in the README: FFHQ's StyleGAN2, e4e's "
        "encoder, DeltaEdit's mapper and CLIP ViT-B/32. With `fs3.npy` beside the mapper, wire **DeltaEdit "
        "Settings** into the mapper, inside, and choose it there with *disentangle_by* `threshold`.",
        0, title="What this shows", height=240,
    )  # fmt: skip
    edit_report(
        graph,
        4,
        photo,
        paste.out("image"),
        width=REPORT,
        clip_scorer=scorer.out("clip scorer"),
        source_text=texts[0],
        target_text=texts[1],
    )
    files = {
        "SemEdit_StyleGAN2Loader": "generator_file",
        "SemEdit_InvertToStyleCode": "encoder_file",
        "SemEdit_DeltaEditMapper": "mapper_file",
        "SemEdit_LoadCLIPScorer": "clip_model",
    }
    offer_face_edit(graph, [(picture, "image")], *files.items())


GRAPHS: dict[str, Callable[[Graph], None]] = {
    "demo_deltaedit_text": demo_deltaedit_text,
    "demo_deltaedit_images": demo_deltaedit_images,
    "demo_deltaedit_diffusion": demo_deltaedit_diffusion,
    "ffhq_deltaedit": ffhq_deltaedit,
}
