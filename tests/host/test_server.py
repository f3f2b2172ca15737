"""The seam on a live server: weights from the stock loader inside a prompt, gradients, Cancel, errors, a lack of
memory."""

import json

import pytest
import torch
from safetensors.torch import load_file

from semantic_editing.tools.comfy_server import PromptFailed

CHECKPOINT = "tiny_sd1.safetensors"


def test_pack_loads_without_complaint(server):
    log = server.log()
    assert f"custom_nodes/{server.pack_name}" in log
    assert "IMPORT FAILED" not in log and "Error while calling comfy_entrypoint" not in log, log[-4000:]
    ours = server.object_info()
    assert "SemEdit_LoadDemoModel" in ours


@pytest.fixture(scope="module")
def checkpoint(server):
    """A checkpoint that the stock loader takes for SD 1.x, made by the server itself."""
    server.queue({"1": {"class_type": "SemEditTest_MakeCheckpoint", "inputs": {}}})
    return CHECKPOINT


def graph(checkpoint, manner="gradient", nonce=0):
    """Stock loader -> probe of the seam, with a conditioning and a latent made in the same prompt."""
    return {
        "loader": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "positive": {"class_type": "SemEditTest_MakeConditioning", "inputs": {"seed": 1, "width": 768}},
        "negative": {"class_type": "SemEditTest_MakeConditioning", "inputs": {"seed": 2, "width": 768}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 96, "batch_size": 2}},
        "probe": {
            "class_type": "SemEditTest_Probe",
            "inputs": {
                "model": ["loader", 0],
                "positive": ["positive", 0],
                "latent": ["latent", 0],
                "manner": manner,
                "nonce": nonce,
            },
        },
    }


def stock(name, model, denoise):
    """A stock KSampler on ``model`` whose latent is saved as ``name``; denoise above 0.9999 counts as 1 but is another
    cache key."""
    inputs = {"seed": 5, "steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": denoise}
    inputs |= {"model": model, "positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["latent", 0]}
    return {
        name: {"class_type": "KSampler", "inputs": inputs},
        f"save {name}": {"class_type": "SaveLatent", "inputs": {"samples": [name, 0], "filename_prefix": name}},
    }


def saved(server, name):
    return load_file(str(sorted((server.base / "output").glob(f"{name}_*.latent"))[-1]))["latent_tensor"]


def report(entry):
    return json.loads(entry["outputs"]["probe"]["text"][0])


def test_gradients_of_stock_loaded_weights_in_a_prompt(server, checkpoint):
    """The trap: weights loaded inside the prompt are inference tensors. The step down the gradient must lower the loss,
    and a stock sampler must give the same bits before and after."""
    prompt = graph(checkpoint) | stock("before", ["loader", 0], 1.0) | stock("after", ["probe", 0], 0.99995)
    found = report(server.queue(prompt))
    assert found["inference_mode"] and found["inference_weights"]
    assert found["gradient"] > 0 and found["after"] < found["before"]
    assert found["grads"] == 0 and found["options"] == []
    before, after = saved(server, "before"), saved(server, "after")
    assert before.shape == (2, 4, 12, 8) and bool(torch.isfinite(before).all()) and float(before.std()) > 0
    assert torch.equal(before, after)


def test_pack_nodes_on_stock_loaded_weights_in_a_prompt(server, checkpoint):
    """Loaded, sampled, inverted by descent, edited with guidance, sampled again, all in one prompt: the stock sampler
    gives the same bits before and after, so the nodes could differentiate inference tensors and left the model as it
    was."""
    fresh = f"fresh_{checkpoint}"  # another name, or the loader would be cached from a prompt before
    (server.base / "models" / "checkpoints" / fresh).symlink_to(server.base / "models" / "checkpoints" / checkpoint)
    prompt = graph(fresh) | stock("nodes_before", ["loader", 0], 1.0) | stock("nodes_after", ["loader", 0], 1.0)
    del prompt["probe"]
    prompt["latent"]["inputs"]["batch_size"] = 1
    prompt |= {
        "target": {"class_type": "SemEditTest_MakeConditioning", "inputs": {"seed": 3, "width": 768}},
        "invert": {
            "class_type": "SemEdit_SPDInvInversion",
            "inputs": {
                "model": ["loader", 0],
                "positive": ["positive", 0],
                "latent": ["nodes_before", 0],
                "steps": 2,
                "solver": "gradient",
                "tolerance": 0.0,
                "max_iterations": 2,
                "learning_rate": 1e-3,
            },
        },
        "edit": {
            "class_type": "SemEdit_CrossAttnGuidedSampler",
            "inputs": {
                "model": ["loader", 0],
                "inversion": ["invert", 0],
                "target": ["target", 0],
                "negative": ["negative", 0],
                "cfg": 5.0,
                "guidance": 0.1,
                "guided_fraction": 1.0,
                "resolution": "all",
                "preset": "lockstep",
            },
        },
        # so that the edit comes first
        "empty": {"class_type": "LatentMultiply", "inputs": {"samples": ["edit", 0], "multiplier": 0.0}},
    }
    prompt["nodes_after"]["inputs"]["latent_image"] = ["empty", 0]
    entry = server.queue(prompt)
    assert "loader" not in dict(entry["status"]["messages"])["execution_cached"]["nodes"]
    assert "6 forward, 4 backward" in entry["outputs"]["invert"]["text"][0]
    assert "8 forward, 2 backward" in entry["outputs"]["edit"]["text"][0]
    before, after = saved(server, "nodes_before"), saved(server, "nodes_after")
    assert before.shape == (1, 4, 12, 8) and bool(torch.isfinite(before).all()) and float(before.std()) > 0
    assert torch.equal(before, after)


def test_an_error_is_told_and_the_next_run_works(server, checkpoint):
    reference = report(server.queue(graph(checkpoint, nonce=1)))
    with pytest.raises(PromptFailed) as caught:
        server.queue(graph(checkpoint, "error", nonce=2))
    assert "broken on purpose" in caught.value.error["exception_message"]
    assert report(server.queue(graph(checkpoint, nonce=3))) | {"inference_weights": True} == reference | {
        "inference_weights": True
    }


def test_lack_of_memory_names_the_widget_and_unloads(server, checkpoint):
    start = len(server.log())
    with pytest.raises(PromptFailed) as caught:
        server.queue(graph(checkpoint, "memory", nonce=4))
    assert caught.value.error["exception_message"].startswith(
        "Out of memory; lower the batch size. (Tried to allocate 3 GiB)"
    )
    assert "Got an OOM, unloading all loaded models" in server.log()[start:]
    assert report(server.queue(graph(checkpoint, nonce=5)))["gradient"] > 0


def test_cancel_in_mid_run_comes_back_soon_and_leaves_things_clean(server, checkpoint):
    reference = report(server.queue(graph(checkpoint, nonce=6)))
    with server.cancelled(graph(checkpoint, "endless", nonce=7)) as (entry, seconds):
        kinds = [kind for kind, _ in entry["status"]["messages"]]
        assert "execution_interrupted" in kinds and "execution_error" not in kinds
        assert seconds < 10  # an endless loop otherwise; generous for a busy machine
    assert report(server.queue(graph(checkpoint, nonce=8))) | {"inference_weights": True} == reference | {
        "inference_weights": True
    }


def test_stock_nodes_run_on_the_demo_model(server):
    """Text to image and back through stock nodes only, on Load Demo Model."""
    sampler = {"seed": 3, "steps": 4, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    prompt = {
        "demo": {"class_type": "SemEdit_LoadDemoModel", "inputs": {}},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["demo", 1], "text": "a person with glasses"}},
        "none": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["demo", 1], "text": ""}},
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "sample": {
            "class_type": "KSampler",
            "inputs": sampler
            | {"model": ["demo", 0], "positive": ["text", 0], "negative": ["none", 0], "latent_image": ["empty", 0]},
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["demo", 2]}},
        "encode": {"class_type": "VAEEncode", "inputs": {"pixels": ["decode", 0], "vae": ["demo", 2]}},
        "again": {"class_type": "VAEDecode", "inputs": {"samples": ["encode", 0], "vae": ["demo", 2]}},
        "show": {"class_type": "PreviewImage", "inputs": {"images": ["again", 0]}},
    }
    (image,) = server.queue(prompt)["outputs"]["show"]["images"]
    assert server.view(image)[:8] == b"\x89PNG\r\n\x1a\n"
