"""The nodes on a live server: the contract as the host sees it, what the UI fetches, and each node in a prompt."""

import json
import urllib.parse
from pathlib import Path

import pytest

from semantic_editing.tests.host.test_workflows import api, node_of, picture, psnr, short
from semantic_editing.tools import node_contract as contract
from semantic_editing.tools.comfy_server import PromptFailed

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT = json.loads((ROOT / "tests" / "nodes" / "snapshot.json").read_text("utf-8"))
GUIDED = {"cfg": 5.0, "guidance": 0.1, "guided_fraction": 1.0, "resolution": "all", "preset": "lockstep"}


def refused(server, prompt):
    """The message of the error that ``prompt`` ends in."""
    with pytest.raises(PromptFailed) as caught:
        server.queue(prompt)
    assert caught.value.error["exception_type"] == "EditingError"  # no module path before it in the browser
    return caught.value.error["exception_message"].strip()


def test_contract_as_the_host_sees_it(server):
    ours = {name: node for name, node in server.object_info().items() if name.startswith("SemEdit_")}
    assert {name: contract.from_object_info(node) for name, node in ours.items()} == SNAPSHOT


def test_what_the_ui_fetches(server):
    for name in SNAPSHOT:
        assert server.request(f"/extensions/{server.pack_name}/docs/{name}.md").startswith(b"# ")
    words = server.get("/i18n")
    for language in ("en", "zh", "ja"):
        assert set(SNAPSHOT) <= set(words[language]["nodeDefs"])
    templates = set(server.get("/workflow_templates")[server.pack_name])
    assert templates == {path.stem for path in (ROOT / "workflows").glob("*.json")}
    for name in map(urllib.parse.quote, templates):
        assert json.loads(server.request(f"/api/workflow_templates/{server.pack_name}/{name}.json"))["version"] == 0.4
        assert server.request(f"/api/workflow_templates/{server.pack_name}/{name}.jpg")[:2] == b"\xff\xd8"


def edit_prompt():
    """The demo's word edit with few steps: (prompt, number of the inversion, number of the sampler)."""
    prompt = short(api("demo_word_edit"))
    return prompt, node_of(prompt, "SemEdit_SPDInvInversion"), node_of(prompt, "SemEdit_CrossAttnGuidedSampler")


def with_decoder(prompt, latent, name):
    prompt[f"{name} decode"] = {
        "class_type": "VAEDecode",
        "inputs": {"samples": latent, "vae": [node_of(prompt, "SemEdit_LoadDemoModel"), 2]},
    }
    prompt[name] = {"class_type": "PreviewImage", "inputs": {"images": [f"{name} decode", 0]}, "_meta": {"title": name}}


def with_guider(prompt, inversion, sampler_name="euler", **changed):
    """SamplerCustomAdvanced with our guider on the outputs of node ``inversion``, shown as "guider"."""
    inputs = dict(prompt[node_of(prompt, "SemEdit_CrossAttnGuidedSampler")]["inputs"])
    prompt["guide"] = {"class_type": "SemEdit_CrossAttnGuider", "inputs": inputs}
    prompt["euler"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": sampler_name}}
    wires = {
        "noise": [inversion, 3],
        "guider": ["guide", 0],
        "sampler": ["euler", 0],
        "sigmas": [inversion, 2],
        "latent_image": [inversion, 1],
    }
    prompt["run"] = {"class_type": "SamplerCustomAdvanced", "inputs": wires | changed}
    with_decoder(prompt, ["run", 0], "guider")


@pytest.mark.slow
def test_guider_makes_the_samplers_picture_and_makes_it_twice(server):
    prompt, inversion, _ = edit_prompt()
    with_guider(prompt, inversion)
    prompt["run again"] = {"class_type": "SamplerCustomAdvanced", "inputs": dict(prompt["run"]["inputs"])}
    prompt["disable"] = {"class_type": "DisableNoise", "inputs": {}}
    prompt["run again"]["inputs"]["noise"] = ["disable", 0]
    with_decoder(prompt, ["run again", 0], "guider again")
    for node in prompt.values():
        node.setdefault("_meta", {"title": ""})
    entry = server.queue(prompt)
    edited = picture(server, entry, prompt, "Edited image")
    assert psnr(picture(server, entry, prompt, "guider"), edited) > 50
    assert psnr(picture(server, entry, prompt, "guider again"), edited) > 50


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m"])
def test_guider_refuses_other_samplers(server, sampler):
    prompt, inversion, _ = edit_prompt()
    with_guider(prompt, inversion, sampler)
    assert "euler" in refused(server, prompt)


def test_save_and_load(server):
    prompt, inversion, _ = edit_prompt()
    direction = node_of(prompt, "SemEdit_SentenceEditDirection")
    prompt["save"] = {
        "class_type": "SemEdit_SaveInversion",
        "inputs": {"inversion": [inversion, 0], "filename": "kept", "overwrite": True},
    }
    prompt["save direction"] = {
        "class_type": "SemEdit_SaveEditDirection",
        "inputs": {"edit_direction": [direction, 0], "filename": "sad2smile", "overwrite": True},
    }
    for name in ("save", "save direction"):
        prompt[name]["_meta"] = {"title": name}
    edited = picture(server, server.queue(prompt), prompt, "Edited image")
    assert (server.base / "models" / "inversions" / "kept.safetensors").is_file()
    for name in ("save", "save direction"):
        del prompt[name]
    model = prompt[inversion]["inputs"]["model"]
    prompt[inversion] |= {
        "class_type": "SemEdit_LoadInversion",
        "inputs": {"model": model, "inversion_file": "kept.safetensors"},
    }
    loaded = {"direction_file": "sad2smile.safetensors", "source_file": "none"}
    prompt[direction] |= {"class_type": "SemEdit_LoadEditDirection", "inputs": loaded}
    assert psnr(picture(server, server.queue(prompt), prompt, "Edited image"), edited) > 50


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".hidden"])
def test_paths_stay_in_their_folder(server, name):
    prompt, inversion, _ = edit_prompt()
    prompt["save"] = {
        "class_type": "SemEdit_SaveInversion",
        "inputs": {"inversion": [inversion, 0], "filename": name, "overwrite": True},
    }
    prompt["save"]["_meta"] = {"title": ""}
    assert "file name" in refused(server, prompt)


def test_an_empty_mask_is_refused_and_one_that_is_next_to_empty_keeps_the_source(server):
    prompt, _, sampler = edit_prompt()
    prompt["mask"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 64, "height": 64}}
    prompt[sampler]["inputs"]["mask"] = ["mask", 0]
    for node in prompt.values():
        node.setdefault("_meta", {"title": ""})
    assert "mask is empty" in refused(server, prompt)
    prompt["mask"]["inputs"]["value"] = 0.001
    with_decoder(prompt, [node_of(prompt, "VAEEncode"), 0], "through the VAE")
    prompt["through the VAE decode"]["_meta"] = {"title": ""}
    entry = server.queue(prompt)
    kept = picture(server, entry, prompt, "Edited image")
    assert psnr(kept, picture(server, entry, prompt, "through the VAE")) > 45  # hardly anything to edit: the source


def test_reference_from_noise_is_edited_without_inversion(server):
    prompt, inversion, _ = edit_prompt()
    demo = node_of(prompt, "SemEdit_LoadDemoModel")
    text = node_of(prompt, "CLIPTextEncode")
    prompt["none"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": [demo, 1], "text": ""}}
    prompt["empty"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 2}}
    inputs = {
        "model": [demo, 0],
        "positive": [text, 0],
        "negative": ["none", 0],
        "empty_latent": ["empty", 0],
        "seed": 3,
        "steps": 8,
        "cfg": 4.0,
    }
    prompt[inversion] = {"class_type": "SemEdit_GenerateReference", "inputs": inputs, "_meta": {"title": ""}}
    for node in prompt.values():
        node.setdefault("_meta", {"title": ""})
    (edited,) = [number for number, node in prompt.items() if node["_meta"]["title"] == "Edited image"]
    assert len(server.queue(prompt)["outputs"][edited]["images"]) == 2
