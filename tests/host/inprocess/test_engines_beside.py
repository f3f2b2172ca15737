"""The engines' nodes beside what else a person has in a workflow, as the guided sampler: previews, Cancel, LoRA,
ControlNet, and another pack's own cross-attention, as IP-Adapter brings it.
"""

import comfy.model_management as mm
import comfy.utils
import latent_preview
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from conftest import noise
from test_composition import with_controlnet
from test_engines import SOURCE, TARGET, guider, invert, sample
from test_recording import lora

import nodes

STEPS = 3
#: Node -> what makes it edit, and what makes it leave the picture.
ENGINES = {
    "prompt_to_prompt.PromptToPromptGuider": ({}, {"target_text": SOURCE}),
    "masactrl.MasaCtrlGuider": ({}, {"target_text": SOURCE}),
    "plug_and_play.PlugAndPlayGuider": ({}, {"target_text": SOURCE}),
    "semantic_guidance.SemanticGuidanceGuider": (
        {"edits": "wearing glasses", "context": SOURCE},
        {"edits": "wearing glasses: 0", "context": SOURCE},
    ),
}
every_engine = pytest.mark.parametrize("name", ENGINES)


@pytest.fixture(autouse=True)
def as_in_a_prompt():
    with torch.inference_mode():
        yield


def edited(pack, name, parts, outputs, **given):
    """``(the edit, what the same node makes of the picture when nothing is to change)``."""
    return [sample(guider(pack, name, parts, outputs[0], **(own | given)), outputs) for own in ENGINES[name]]


def source_of(outputs, model):
    return outputs[0].latents[0] / model.model.latent_format.scale_factor


@every_engine
def test_a_preview_of_each_step_is_sent(pack, demo, name, monkeypatch):
    sent = []

    class Bar:
        def __init__(self, total, *_, **__):
            self.total = total

        def update_absolute(self, value, total=None, preview=None):
            sent.append((value, preview))

    outputs = invert(pack, demo, steps=STEPS)
    made = guider(pack, name, demo, outputs[0], **ENGINES[name][0])
    monkeypatch.setattr(comfy.utils, "ProgressBar", Bar)
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB)
    sample(made, outputs)
    assert [value for value, _ in sent] == [1, 2, 3] and all(preview is not None for _, preview in sent)
    pictures = [preview[1].tobytes() for _, preview in sent]
    assert sent[0][1][1].size == (8, 8) and len(set(pictures)) == STEPS


@every_engine
def test_cancel_in_the_middle_leaves_the_next_run_as_it_was(pack, demo, name):
    outputs = invert(pack, demo)
    made = guider(pack, name, demo, outputs[0], **ENGINES[name][0])
    want = sample(made, outputs)
    network, calls = demo[0].model.diffusion_model, []

    def cancel(*_):
        calls.append(1)
        if len(calls) == 2:
            mm.interrupt_current_processing(True)

    handle = network.register_forward_hook(cancel)
    with pytest.raises(mm.InterruptProcessingException):
        sample(made, outputs)
    handle.remove()
    mm.interrupt_current_processing(False)
    assert torch.equal(sample(made, outputs), want)
    assert not any(module._forward_hooks for module in network.modules())


@every_engine
def test_beside_a_lora(pack, demo, name):
    """On the model that is inverted and on the one that edits: its own picture comes back, and the edit is another."""
    plain = invert(pack, demo, steps=STEPS)
    without, _ = edited(pack, name, demo, plain)
    adapted = (lora(demo[0], 1.0), demo[1])
    outputs = invert(pack, adapted, steps=STEPS)
    with_lora, same = edited(pack, name, adapted, outputs)
    torch.testing.assert_close(same, source_of(outputs, demo[0]), rtol=1e-3, atol=2e-3)
    assert float((with_lora - without).abs().max()) > 1e-3
    assert torch.equal(edited(pack, name, demo, plain)[0], without)  # the model underneath is as it was


@every_engine
def test_beside_a_controlnet(pack, demo, name):
    """On the source as it was inverted and on the target: the picture comes back, and the edit follows the control."""
    texts = {"source": SOURCE, "target": TARGET}
    conds = {key: nodes.CLIPTextEncode().encode(demo[1], text)[0] for key, text in texts.items()}
    controlled = with_controlnet(demo[0], conds)[1]
    outputs = invert(pack, demo, steps=STEPS, positive=controlled["source"])
    assert outputs[0].cond is None  # more than text: it must be wired
    several = name.startswith("semantic")
    made = []
    for given, own in zip(ENGINES[name], (controlled["target"], controlled["source"]), strict=True):
        wired = {"source": controlled["source"]} | ({} if several else {"target": own})
        made.append(sample(guider(pack, name, demo, outputs[0], **given, **wired), outputs))
    torch.testing.assert_close(made[1], source_of(outputs, demo[0]), rtol=1e-3, atol=2e-3)
    bare = {"source": conds["source"]} if several else {"source": controlled["source"], "target": conds["target"]}
    without = sample(guider(pack, name, demo, outputs[0], **ENGINES[name][0], **bare), outputs)
    assert float((made[0] - without).abs().max()) > 1e-3


def with_picture_tokens(model, through_options=False):
    """Cross-attention replaced whole, a picture's tokens beside the text's, as IP-Adapter does; as many as places.

    Args:
        through_options: the other pack hands the host's options on, so that its calls are shown to controls.
    """
    patched = model.clone()

    def attend(q, k, v, options):
        shown = {"transformer_options": options} if through_options else {}
        own = noise(1, q.shape[1], q.shape[2], seed=q.shape[1]).expand(len(q), -1, -1).to(q)
        text = optimized_attention(q, k, v, options["n_heads"], **shown)
        return text + 0.5 * optimized_attention(q, own, own, options["n_heads"], **shown)

    for block, number in (*(("input", n) for n in range(12)), ("middle", 0), *(("output", n) for n in range(12))):
        patched.set_model_attn2_replace(attend, block, number)
    return patched


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("prompt_to_prompt.PromptToPromptGuider", {"cross_fraction": 0.0}),
        ("masactrl.MasaCtrlGuider", {}),
        ("plug_and_play.PlugAndPlayGuider", {}),
        ("semantic_guidance.SemanticGuidanceGuider", {}),
    ],
)
def test_what_looks_at_no_words_works_beside_replaced_cross_attention(pack, demo, name, given):
    plain = invert(pack, demo, steps=STEPS)
    without, _ = edited(pack, name, demo, plain, **given)
    made = []
    for through_options in (False, True):
        parts = (with_picture_tokens(demo[0], through_options), demo[1])
        outputs = invert(pack, parts, steps=STEPS)
        change, same = edited(pack, name, parts, outputs, **given)
        torch.testing.assert_close(same, source_of(outputs, demo[0]), rtol=1e-3, atol=2e-3)
        assert float((change - without).abs().max()) > 1e-3
        made.append(change)
    torch.testing.assert_close(*made, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("prompt_to_prompt.PromptToPromptGuider", {}),
        ("masactrl.MasaCtrlGuider", {"foreground_words": "person"}),
        ("semantic_guidance.SemanticGuidanceGuider", {"attention": True}),
    ],
)
def test_what_looks_at_words_refuses_replaced_cross_attention(pack, demo, name, given):
    parts = (with_picture_tokens(demo[0]), demo[1])
    outputs = invert(pack, parts, steps=STEPS)
    with pytest.raises(ValueError, match="replaced the model's cross-attention"):
        sample(guider(pack, name, parts, outputs[0], **(ENGINES[name][0] | given)), outputs)
