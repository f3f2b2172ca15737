"""The shipped workflows on a live server: demo ones run to the picture, the others validate, both formats agree."""

import io
import json
import math
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.tools import make_workflows
from semantic_editing.tools.comfy_server import PromptFailed
from semantic_editing.tools.gallery import template_name

ROOT = Path(__file__).resolve().parents[2]
FLOOR = "0.3.64"
DEMOS = (
    "demo_invert_reconstruct",
    "demo_word_edit",
    "demo_noise_regularised",
    "demo_pix2pix_zero",
    "demo_synthetic_edit",
    "demo_prompt_to_prompt",
    "demo_masactrl",
    "demo_plug_and_play",
    "demo_several_edits",
    "demo_caso_train",
    "demo_caso_texts",
    "demo_caso_edit",
    "demo_caso_multi",
    "demo_region_edit",
    "demo_region_mask_to_inpaint",
    "demo_edit_by_words",
    "demo_distil_edit",
    "demo_distil_train",
)
CHECKPOINTS = (
    "sd15_word_edit",
    "sdxl_word_edit",
    "sd15_caso_train",
    "sd15_caso_edit",
    "sd15_concept_edit",
    "sd15_inpaint_region_edit",
)
DELTAEDIT = ("demo_deltaedit_text", "demo_deltaedit_images", "demo_deltaedit_diffusion", "ffhq_deltaedit")
SHORT = {"steps": 4, "count": 8}  # for the tests that do not look at the picture


def api(name):
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text("utf-8"))


def ui(name):
    return json.loads((ROOT / "workflows" / f"{template_name(name)}.json").read_text("utf-8"))


def short(prompt):
    """The prompt with few steps, and no picture saved under the name of the real run."""
    for node in prompt.values():
        if node["class_type"] != "SemEdit_LoadDemoImage":  # its count is of pictures, not of sentences
            node["inputs"] |= {key: value for key, value in SHORT.items() if key in node["inputs"]}
    return prompt


def node_of(prompt, kind):
    (number,) = [number for number, node in prompt.items() if node["class_type"] == kind]
    return number


def picture(server, entry, prompt, title):
    """``[3, H, W]`` in 0..1 of the node called ``title``."""
    (number,) = [number for number, node in prompt.items() if node["_meta"]["title"] == title]
    (image,) = entry["outputs"][number]["images"]
    pixels = np.asarray(Image.open(io.BytesIO(server.view(image))).convert("RGB"))
    return torch.from_numpy(pixels.copy()).movedim(-1, 0).float() / 255


def text_of(entry, prompt, title):
    """What the text node called ``title`` shows."""
    (number,) = [number for number, node in prompt.items() if node["_meta"]["title"] == title]
    return "\n".join(entry["outputs"][number]["text"])


def psnr(a, b):
    return -10 * math.log10(float((a - b).square().mean()) + 1e-12)


def opened(workflow):
    """The nodes of a saved workflow and its links, number -> (node, slot), with its closed part taken apart."""
    nodes = [node for node in workflow["nodes"] if node["type"] not in ("MarkdownNote", "Note")]
    links = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    for closed in workflow.get("definitions", {}).get("subgraphs", ()):
        (box,) = [node for node in nodes if node["type"] == closed["id"]]
        inner = {link["id"]: (link["origin_id"], link["origin_slot"]) for link in closed["links"]}
        leaving = {link["target_slot"]: inner[link["id"]] for link in closed["links"] if link["target_id"] == -20}
        links = {number: leaving[start[1]] if start[0] == box["id"] else start for number, start in links.items()}
        shown = [slot for slot in box["inputs"] if "widget" in slot]
        assert len(shown) == len(box["widgets_values"])
        nodes.remove(box)
        for node in closed["nodes"]:
            for slot in node["inputs"]:
                start = inner.get(slot["link"])
                if start is None:
                    continue
                entered = box["inputs"][start[1]] if start[0] == -10 else None
                if entered is not None and entered["link"] is None:  # a widget of the box: it and the node's own agree
                    assert slot["widget"]["name"] == entered["name"].split(" ")[0]
                    value = box["widgets_values"][shown.index(entered)]
                    assert value in node["widgets_values"], f"{closed['name']}: {entered['name']}"
                    slot["link"] = None
                else:
                    slot["link"] = key = ("inner", slot["link"])
                    links[key] = start if entered is None else links[entered["link"]]
            nodes.append(node)
    return sorted(nodes, key=lambda node: node["id"]), links


def from_ui(workflow, info):
    """What the UI would send for a saved workflow: an independent reading of the format, by positions and links."""
    nodes, links = opened(workflow)
    prompt = {}
    for node in nodes:
        definition = info[node["type"]]
        specs = {**definition["input"].get("required", {}), **definition["input"].get("optional", {})}
        values, inputs = list(node["widgets_values"]), {}
        for slot in node["inputs"]:
            if "widget" in slot:
                inputs[slot["name"]] = values.pop(0)
                options = specs[slot["name"]][1] if len(specs[slot["name"]]) > 1 else {}
                for extra in ("control_after_generate", "image_upload"):
                    if options.get(extra):
                        values.pop(0)
            if slot["link"] is not None:
                start, number = links[slot["link"]]
                inputs[slot["name"]] = [str(start), number]
        assert values == [], f"{node['type']} has values left over: {values}"
        title = node.get("title", definition["display_name"])
        prompt[str(node["id"])] = {"inputs": inputs, "class_type": node["type"], "_meta": {"title": title}}
    return prompt


@pytest.fixture(scope="module")
def info(server):
    return server.object_info()


@pytest.fixture(scope="module")
def floor(server):
    return server.get("/system_stats")["system"]["comfyui_version"] == FLOOR


def wired(prompt):
    return {
        k: {"class_type": v["class_type"], "inputs": {i: x for i, x in v["inputs"].items() if x is not None}}
        for k, v in prompt.items()
    }


@pytest.mark.parametrize("name", DEMOS + CHECKPOINTS + DELTAEDIT)
def test_both_formats_agree(name, info, floor):
    found = from_ui(ui(name), info)
    assert wired(found) == wired(api(name))
    if floor:  # newer hosts call stock nodes otherwise, and a title is stored only where it is not the host's own
        titles = {k: v["_meta"]["title"].removesuffix(" (for comparison)") for k, v in api(name).items()}
        assert {k: v["_meta"]["title"].removesuffix(" (for comparison)") for k, v in found.items()} == titles


@pytest.mark.parametrize("name", DEMOS + CHECKPOINTS + DELTAEDIT)
def test_files_are_what_the_tool_writes(name, info, floor):
    if not floor:
        pytest.skip("the files are built on the floor host; newer hosts may add inputs to stock nodes")
    built = make_workflows.build_all(info)
    assert built[f"workflows/{template_name(name)}.json"] == (
        ROOT / "workflows" / f"{template_name(name)}.json"
    ).read_text("utf-8")
    assert built[f"workflows/api/{name}.json"] == (ROOT / "workflows" / "api" / f"{name}.json").read_text("utf-8")


@pytest.mark.parametrize("name", DEMOS + CHECKPOINTS + DELTAEDIT)
def test_inputs_are_complete_and_links_have_the_right_type(name, info):
    prompt = api(name)
    for number, node in prompt.items():
        definition = info[node["class_type"]]
        required, optional = definition["input"].get("required", {}), definition["input"].get("optional", {})
        assert set(required) <= set(node["inputs"]) <= {*required, *optional}, f"node {number}"
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                wanted = {**required, **optional}[key][0]
                made = info[prompt[value[0]]["class_type"]]["output"][value[1]]
                assert {"*", made} & set(wanted.split(",")), f"{node['class_type']}.{key} wants {wanted}, gets {made}"


@pytest.mark.parametrize("name", DEMOS + CHECKPOINTS + DELTAEDIT)
def test_layout_has_no_overlaps_and_the_file_has_its_pictures(name):
    workflow = ui(name)
    boxes = []
    for n in workflow["nodes"]:
        width, height = (200, 0) if n["flags"].get("collapsed") else n["size"]
        boxes.append((n["pos"][0], n["pos"][1] - 30, n["pos"][0] + width, n["pos"][1] + height, n["type"]))
    if workflow["groups"]:  # opened at 1440 x 900, text is drawn
        assert max(b[2] for b in boxes) - min(b[0] for b in boxes) <= 1300
        assert max(b[3] for b in boxes) - min(b[1] for b in boxes) <= 920
        assert "ds" not in workflow["extra"], "a fixed view hides the top under the toolbar"
    for index, a in enumerate(boxes):
        for b in boxes[index + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], f"{a[4]} covers {b[4]}"
    with (
        Image.open(ROOT / "workflows" / f"{template_name(name)}.jpg") as thumbnail,
        Image.open(ROOT / "workflows" / "previews" / f"{name}.png") as preview,
    ):
        assert min(*thumbnail.size, *preview.size) >= 200


def test_apps_and_blueprints_are_what_the_tool_writes(info, floor):
    if not floor:
        pytest.skip("the files are built on the floor host; newer hosts may add inputs to stock nodes")
    made = {path: text for path, text in make_workflows.build_all(info).items() if "app.json" in path or "sub" in path}
    assert len(made) == 12
    assert made == {path: (ROOT / path).read_text("utf-8") for path in made}
    shipped = [*(ROOT / "workflows").glob("*.app.json"), *(ROOT / "subgraphs").glob("*.json")]
    assert {path.relative_to(ROOT).as_posix() for path in shipped} == set(made)


@pytest.mark.parametrize(
    "name",
    sorted(
        {*DEMOS, *CHECKPOINTS}
        - {"demo_caso_train", "demo_caso_texts", "demo_distil_train", "sd15_caso_train"}  # which learn
        - {"demo_edit_by_words", "sd15_inpaint_region_edit"}  # whose one node shows its own report
    ),
)
def test_every_edit_is_reported_on(name):
    prompt = api(name)
    report = node_of(prompt, "SemEdit_EditReport")
    inputs = prompt[report]["inputs"]
    (original,) = [node for node in prompt.values() if node["_meta"]["title"] == "Original"]
    (made,) = [node for node in prompt.values() if node["_meta"]["title"] in ("Edited image", "Rebuilt image")]
    assert inputs["before"] == original["inputs"]["images"] and inputs["after"] == made["inputs"]["images"]
    true = [node["inputs"]["images"] for node in prompt.values() if node["_meta"]["title"].startswith("True edited")]
    assert not true or inputs["true_edit"] == true[0]
    wired = [node for node in prompt.values() if node["inputs"].get("source") == [report, 2]]
    assert [node["class_type"] for node in wired] == ["PreviewAny"]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_only_the_persons_own_files_are_missing(name, server):
    with pytest.raises(PromptFailed) as caught:
        server.submit(api(name))
    wrong = {
        e["extra_info"]["input_name"] for node in caught.value.error["node_errors"].values() for e in node["errors"]
    }
    own = {"ckpt_name", "image", "embedding_file", "lora_name", "vision_model", "clip_model"}
    assert wrong <= own and "ckpt_name" in wrong


def with_stock_noise(prompt):
    """Adds "Rebuilt without noise": the workflow's sampling once more, with stock DisableNoise and CFGGuider at cfg
    1."""
    (run,) = [node["inputs"] for node in prompt.values() if node["class_type"] == "SamplerCustomAdvanced"]
    (decode,) = [node["inputs"] for node in prompt.values() if node["class_type"] == "VAEDecode"]
    model, cond = (prompt[run["guider"][0]]["inputs"][name] for name in ("model", "conditioning"))
    guider = {"model": model, "positive": cond, "negative": cond, "cfg": 1.0}
    added = {
        "disable": ("DisableNoise", {}),
        "guider": ("CFGGuider", guider),
        "run": ("SamplerCustomAdvanced", run | {"noise": ["disable", 0], "guider": ["guider", 0]}),
        "decode": ("VAEDecode", decode | {"samples": ["run", 0]}),
        "Rebuilt without noise": ("PreviewImage", {"images": ["decode", 0]}),
    }
    return prompt | {
        key: {"class_type": kind, "inputs": inputs, "_meta": {"title": key}} for key, (kind, inputs) in added.items()
    }


@pytest.mark.parametrize("name", ["demo_invert_reconstruct", "demo_noise_regularised"])
def test_rebuilt_picture(name, server):
    prompt = api(name)
    exact = name == "demo_invert_reconstruct"
    shown = (
        7  # report, rebuilt, original, plot, the inversion with its own, and the report on the edit with its figures
    )
    if exact:
        prompt, shown = with_stock_noise(prompt), shown + 1
    entry = server.queue(prompt, timeout=600)
    demo = load_demo_model()
    original = picture(server, entry, prompt, "Original")
    assert psnr(original, demo.images[0]) > 50  # saved in 8 bits
    with torch.no_grad():
        through_vae = demo.decode(demo.encode_image(original[None]))[0]
    rebuilt = picture(server, entry, prompt, "Rebuilt image")
    assert psnr(rebuilt, through_vae) > (45 if exact else 20)
    if exact:  # the noise latent carries everything: the node's own noise adds nothing to it
        assert torch.equal(picture(server, entry, prompt, "Rebuilt without noise"), rebuilt)
    assert "50 steps" in text_of(entry, prompt, "Report")
    assert len(entry["outputs"]) == shown
    figures = text_of(entry, prompt, "Figures of the edit")
    found = float(re.search(r"^PSNR, dB +(\S+) ", figures, re.M).group(1))
    assert found == pytest.approx(psnr(rebuilt, original), abs=0.2)  # saved pictures have 8 bits


def test_a_made_up_picture_is_itself_without_its_direction(server):
    pictures = {}
    for strength in (0.0, 1.0):
        prompt = short(api("demo_synthetic_edit"))
        prompt[node_of(prompt, "SemEdit_ApplyEditDirection")]["inputs"]["strength"] = strength
        entry = server.queue(prompt, timeout=600)
        pictures[strength] = [picture(server, entry, prompt, title) for title in ("Edited image", "Original")]
    assert psnr(*pictures[0.0]) > 60 > psnr(*pictures[1.0])


@pytest.mark.slow
def test_word_edit(server):
    prompt = api("demo_word_edit")
    entry = server.queue(prompt, timeout=900)
    original = picture(server, entry, prompt, "Original")
    edited = picture(server, entry, prompt, "Edited image")
    truth = picture(server, entry, prompt, "True edited image (for comparison)")
    assert "200 forward, 50 backward" in text_of(entry, prompt, "Report")
    assert "where the true edit changes something it is nearer" in text_of(entry, prompt, "Figures of the edit")
    demo = load_demo_model()
    with torch.no_grad():
        unedited = demo.decode(demo.encode_image(original[None]))[0]
        labels = demo.classify(torch.stack([original, edited, truth]))["glasses"].argmax(1).tolist()
    assert [demo.classifier.classes["glasses"][label] for label in labels] == ["none", "glasses", "glasses"]
    changed = (edited - unedited).abs().mean(0)
    height = changed.shape[0]
    assert (
        psnr(edited, truth) > 18 and float(changed[: height // 8].mean()) < float(changed.max()) / 4
    )  # the background above stays


def test_a_second_edit_of_one_photo_takes_the_source_from_the_first(server):
    prompt = short(api("demo_word_edit"))
    node = node_of(prompt, "SemEdit_CrossAttnGuidedSampler")
    spared = f"{SHORT['steps']} evaluations per image spared"

    def edited():
        entry = server.queue(prompt)
        return picture(server, entry, prompt, "Edited image"), text_of(entry, prompt, "Report")

    prompt[node]["inputs"]["cfg"] = 1.75  # not what another test edited at
    edited()
    prompt[node]["inputs"]["cfg"] = 2.25
    again, report = edited()
    assert spared in report
    server.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(2)  # the host does so in its own time
    anew, report = edited()
    assert spared not in report
    assert torch.equal(anew, again)


def test_distilled_edit(server):
    """Glasses by one forward of a small network: nearer to the truth than doing nothing, seen by the judge."""
    prompt = api("demo_distil_edit")
    entry = server.queue(prompt)
    made, source, truth = (
        picture(server, entry, prompt, title)
        for title in ("Edited image", "Original", "True edited image (for comparison)")
    )
    assert psnr(made, truth) > psnr(source, truth)
    assert load_demo_model().judge.labels(made[None])[0]["glasses"] == "glasses"
    assert "one forward of the small network each" in text_of(entry, prompt, "Report")


def test_distillation_from_pairs_of_the_edit_itself(server):
    """Few and rough pairs, all of them learned from: that the parts work together."""
    prompt = api("demo_distil_train")
    prompt[node_of(prompt, "SemEdit_SPDInvInversion")]["inputs"]["steps"] = 2
    trainer = node_of(prompt, "SemEdit_DistilEditTrainer")
    prompt[trainer]["inputs"]["steps"] = 2
    prompt[node_of(prompt, "SemEdit_DistilTrainingSettings")]["inputs"]["check_every"] = 1
    del prompt[trainer]["inputs"]["clip_scorer"]
    (several,) = [
        node for node in prompt.values() if node["inputs"].get("count", 1) > 1 and "pictures" in node["inputs"]
    ]
    several["inputs"]["count"] = 4
    entry = server.queue(prompt)
    told = text_of(entry, prompt, "Training")
    assert "Saved demo_my_glasses.safetensors" in told and "4 of 4 pairs are learned from" in told
    assert picture(server, entry, prompt, "Another face, by what was learned").shape == (3, 128, 128)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "attribute", "label"),
    [
        ("demo_prompt_to_prompt", "glasses", "glasses"),
        ("demo_masactrl", "top", "hat"),
        ("demo_plug_and_play", "background", "green"),
    ],
)
def test_engine(server, name, attribute, label):
    """The classifier sees the edit; where the true one changes something, it is nearer to that than the original."""
    prompt = api(name)
    entry = server.queue(prompt, timeout=900)
    original, edited, truth = (
        picture(server, entry, prompt, title)
        for title in ("Original", "Edited image", "True edited image (for comparison)")
    )
    demo = load_demo_model()
    with torch.no_grad():
        labels = demo.classify(torch.stack([original, edited, truth]))[attribute].argmax(1).tolist()
    before, after, true = (demo.classifier.classes[attribute][number] for number in labels)
    assert before != label and after == true == label
    changed = (original - truth).abs().amax(0) > 0.1
    assert psnr(edited, truth) > 18
    assert psnr(edited[:, changed], truth[:, changed]) > psnr(original[:, changed], truth[:, changed])


@pytest.mark.slow
def test_embedding_edit(server):
    prompt = api("demo_caso_edit")
    sampler = node_of(prompt, "SemEdit_CASOEditSampler")
    prompt[sampler]["inputs"]["interpolate"] = 3  # a strip from minus over 0 to plus
    entry = server.queue(prompt, timeout=900)
    original, edited = (picture(server, entry, prompt, title) for title in ("Original", "Edited image"))
    labels = load_demo_model().classifier.labels(torch.stack([original, edited]))
    assert [row["glasses"] for row in labels] == ["none", "glasses"]
    (strip,) = [number for number, node in prompt.items() if node["_meta"]["title"] == "From minus to plus"]
    assert len(entry["outputs"][strip]["images"]) == 3


@pytest.mark.parametrize("name", ["sd15_caso_train", "sd15_caso_edit"])
def test_a_person_sees_few_nodes_and_widgets(name):
    """At most 6 nodes and 15 widgets besides what only shows something; the floor host shows advanced widgets too."""
    nodes = [node for node in api(name).values() if not node["class_type"].startswith("Preview")]
    widgets = [
        (node["class_type"], key) for node in nodes for key, value in node["inputs"].items() if type(value) is not list
    ]
    assert 2 <= len(nodes) <= 6 and 9 <= len(widgets) <= 15, widgets


def test_two_embeddings_with_strengths_of_their_own(server):
    prompt = short(api("demo_caso_multi"))
    entry = server.queue(prompt)
    report = text_of(entry, prompt, "Report")
    assert "glasses +3" in report and "beard +5" in report and "guided where it pulls most (10 %)" in report


def best_box(entry, prompt):
    """x, y, width, height of the first row of the scores: rank, box, scores."""
    (number,) = [number for number, node in prompt.items() if node["_meta"]["title"] == "Scores"]
    (table,) = entry["outputs"][number]["text"]
    return json.loads(table.splitlines()[1].split(" | ")[1])


@pytest.mark.slow
def test_the_edit_finds_its_place_and_changes_nothing_outside(server):
    prompt = api("demo_region_edit")
    entry = server.queue(prompt, timeout=900)
    original, edited = (picture(server, entry, prompt, title) for title in ("Original", "Edited image"))
    x, y, width, height = best_box(entry, prompt)
    outside = torch.ones(128, 128, dtype=torch.bool)
    outside[y : y + height, x : x + width] = False
    assert outside.any() and torch.equal(edited[:, outside], original[:, outside])
    labels = load_demo_model().judge.labels(torch.stack([original, edited]))
    assert [row["facial_hair"] for row in labels] == ["none", "beard"]
    report, figures = (
        entry["outputs"][node_of(prompt, "SemEdit_EditReport")],
        text_of(entry, prompt, "Figures of the edit"),
    )
    assert figures == report["text"][0] and len(report["images"]) == 1
    assert figures.startswith("Outside the mask every pixel is the same. All of the visible change lies inside it")
    assert "It is nearer to the true edit than doing nothing" in figures
    assert "CLIP sees it nearer to the target text than before" in figures and "structure distance" in figures


@pytest.mark.slow
def test_the_found_mask_serves_stock_nodes(server):
    prompt = api("demo_region_mask_to_inpaint")
    entry = server.queue(prompt, timeout=900)
    mask, original, edited = (
        picture(server, entry, prompt, title) for title in ("Mask that was found", "Original", "Edited image")
    )
    x, y, width, height = best_box(entry, prompt)
    box = torch.zeros(128, 128)
    box[y : y + height, x : x + width] = 1
    assert torch.equal(mask, box.expand(3, -1, -1))
    assert torch.equal(edited[:, box == 0], original[:, box == 0])
    labels = load_demo_model().judge.labels(torch.stack([original, edited]))
    assert [row["glasses"] for row in labels] == ["none", "glasses"]


def test_second_run_is_cached(server):
    prompt = short(api("demo_invert_reconstruct"))
    server.queue(prompt)
    messages = dict(server.queue(prompt)["status"]["messages"])
    ours = {number for number, node in prompt.items() if node["class_type"].startswith("SemEdit_")}
    assert ours <= set(messages["execution_cached"]["nodes"])


@pytest.mark.slow
def test_cancel_in_mid_run_then_the_same_picture(server):
    prompt = short(api("demo_word_edit"))
    reference = picture(server, server.queue(prompt), prompt, "Edited image")
    sampler = node_of(prompt, "SemEdit_CrossAttnGuidedSampler")
    long = json.loads(json.dumps(prompt))
    long[sampler]["inputs"]["guidance"] = 0.11  # another key: the sampler must run, the inversion is cached
    long[node_of(prompt, "SemEdit_SPDInvInversion")]["inputs"]["steps"] = 400
    with server.cancelled(long, after=lambda log: time.sleep(1.5) is None) as (entry, seconds):
        kinds = [kind for kind, _ in entry["status"]["messages"]]
        assert "execution_interrupted" in kinds and "execution_error" not in kinds
        assert seconds < 20  # 400 steps take minutes; one evaluation takes a fraction of a second
    again = json.loads(json.dumps(prompt))
    again[sampler]["inputs"]["guidance"] += 1e-4  # run anew
    assert psnr(picture(server, server.queue(again), again, "Edited image"), reference) > 40


def test_second_run_after_an_error(server):
    prompt = short(api("demo_invert_reconstruct"))
    broken = json.loads(json.dumps(prompt))
    broken["99"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 16, "height": 16, "batch_size": 1}}
    broken[node_of(prompt, "SemEdit_SPDInvInversion")]["inputs"]["latent"] = ["99", 0]
    with pytest.raises(PromptFailed) as caught:
        server.queue(broken)
    assert "scale or crop one" in caught.value.error["exception_message"]
    assert picture(server, server.queue(prompt), prompt, "Rebuilt image").shape[0] == 3
