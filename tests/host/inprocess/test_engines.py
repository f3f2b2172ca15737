"""The engines in the host: one latent each in one call, injected attention and features, beside areas, ControlNets,
LoRAs, other packs' tokens and functions; the nodes under SamplerCustomAdvanced, with the words of the demo's CLIP.
"""

from dataclasses import replace

import comfy.lora
import comfy.samplers
import comfy.utils
import folder_paths
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from conftest import comfy_model, conditioning, diffusers_unet, noise, on_settings
from test_composition import with_cfg_patches, with_controlnet, with_lora, with_model_function, with_regions
from test_recording import node

import nodes

SIGMA = 3.0
X = [noise(2, 4, 16, 16, seed=seed) * SIGMA for seed in (1, 2, 3)]
NAMES = ("positive", "negative", "source")
WORDS = 7


@pytest.fixture(autouse=True)
def as_in_a_prompt():
    with torch.inference_mode():
        yield


def conds_of(family="sd1"):
    return {name: conditioning(family, seed) for name, seed in zip(NAMES, (1, 9, 5), strict=True)}


def run(pack, model, conds, work, x=X[0]):
    return pack("nodes.host.sampling").run(model, {"samples": torch.zeros_like(x)}, conds, work)


def evaluations_of(model, calls):
    """Counts the calls of the network itself."""
    return model.model.diffusion_model.register_forward_hook(lambda *_: calls.append(1))


@pytest.mark.parametrize(
    ("feature", "calls"),
    [(None, 1), (with_lora, 1), (with_regions, 2), (with_controlnet, 3), (with_model_function, 3)],
)
def test_one_latent_each_equals_single_evaluations(pack, feature, calls):
    """In one call of the network where nothing else reads the latent (one more for parts of another size)."""
    model, conds = comfy_model(pack, "sd1", diffusers_unet("sd1")), conds_of()
    if feature is not None:
        model, conds = feature(model, conds)

    def work(session):
        denoiser, given = session.denoiser, [session.conds[name] for name in NAMES]
        seen = []
        handle = evaluations_of(model, seen)
        together = denoiser.batch(X, SIGMA, given)
        handle.remove()
        return seen, together, [denoiser(x, SIGMA, cond) for x, cond in zip(X, given, strict=True)]

    seen, together, alone = run(pack, model, conds, work)
    assert len(seen) == calls
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_engines_equal_those_on_diffusers(pack, models, family):
    """The same weights, latents and conditionings: every engine's prediction, step by step."""
    from diffusers import DDIMScheduler

    pair = models(family)
    kind = "v_prediction" if family == "sd2" else "epsilon"
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind)
    backend = pack("core.diffusers.denoiser")
    theirs = backend.DiffusersDenoiser(pair.unet, scheduler)
    conds = conds_of(family)
    plain = [backend.TextCond(c[0][0], c[0][1].get("pooled_output")) for c in conds.values()]
    x = noise(2, 4, 8, 12, seed=4)
    with torch.inference_mode(False), torch.no_grad():
        inversion = pack("core.spdinv.invert").invert(theirs, x.clone(), plain[2], steps=3, solver="ddim")

    def results(denoiser, positive, negative, source):
        found = []
        for engine in engines(pack, start_layer=3 if family == "sdxl" else -1):
            edit = engine(denoiser, inversion, source, positive, negative)
            found += [edit.denoised(inversion.latents[level] + 0.1, level) for level in (3, 2, 1)]
        return found

    def work(session):
        return results(session.denoiser, *(session.conds[name] for name in NAMES))

    ours = run(pack, pair.model, conds, work, x)
    with torch.inference_mode(False), torch.no_grad():
        expected = results(theirs, *plain)
    for a, b in zip(ours, expected, strict=True):
        assert float((a - b).norm() / b.norm()) < 2e-3


def engines(pack, start_layer=0, off=False, shift=True):
    """Makers of an engine of (denoiser, inversion, source, target, negative)."""
    p2p, words = pack("core.engines.prompt_to_prompt"), pack("core.engines.words")
    masa, pnp = pack("core.engines.masactrl"), pack("core.engines.plug_and_play")
    share = 0.0 if off else 0.67
    taken = torch.arange(WORDS)
    taken[2] = -1
    word_map = p2p.WordMap(words.Alignment(taken))
    settings = (
        p2p.PromptToPromptSettings(2.0, shift, share, share),
        masa.MasaCtrlSettings(2.0, shift, 1.0 - share, start_layer),
        pnp.PlugAndPlaySettings(2.0, shift, share, share),
    )
    return [
        lambda *given: p2p.PromptToPrompt(*given, settings=settings[0], words=word_map),
        lambda *given: masa.MasaCtrl(*given, settings=settings[1]),
        lambda *given: pnp.PlugAndPlay(*given, settings=settings[2]),
    ]


def inverted(pack, session, x, cond="source"):
    return pack("core.spdinv.invert").invert(session.denoiser, x, session.conds[cond], steps=3, solver="ddim")


@pytest.mark.parametrize(
    ("number", "feature"),
    [
        (0, None),
        (0, with_controlnet),
        (1, with_lora),
        (1, with_cfg_patches),
        (2, with_controlnet),
        (2, with_model_function),
    ],
)
def test_an_edit_without_change_gives_the_picture_and_leaves_the_model(pack, number, feature):
    """Target = source, also where the host evaluates the latents one after another: the trajectory itself, and a model
    as it was; with nothing taken it is the host's own guidance, bit for bit."""
    model, conds = comfy_model(pack, "sd1", diffusers_unet("sd1")), conds_of()
    conds["positive"] = conds["source"]
    if feature is not None:
        model, conds = feature(model, conds)
    x = noise(2, 4, 16, 16, seed=6)

    def work(session):
        inversion = inverted(pack, session, x)
        before = session.denoiser(X[0], SIGMA, session.conds["source"])
        given = [session.conds[name] for name in ("source", "positive", "source")]
        same = engines(pack)[number](session.denoiser, inversion, *given).run(3)
        off = engines(pack, off=True)[number](
            session.denoiser, inversion, *(session.conds[name] for name in ("source", "positive", "negative"))
        ).run(3)
        plain = pack("core.sampling").reconstruct(
            session.denoiser, inversion, session.conds["positive"], 2.0, session.conds["negative"]
        )
        return same, off, plain, before, session.denoiser(X[0], SIGMA, session.conds["source"])

    same, off, plain, before, after = run(pack, model, conds, work)
    assert torch.equal(off, plain) and torch.equal(before, after)
    if feature is not with_cfg_patches:  # those change a prediction also where both conditionings are the same
        torch.testing.assert_close(same, x, rtol=1e-3, atol=2e-3)
    assert not any(module._forward_hooks for module in model.model.diffusion_model.modules())


def test_areas_take_from_the_same_areas_and_others_are_refused(pack):
    model = comfy_model(pack, "sd1", diffusers_unet("sd1"))
    plain = conds_of()
    _, regions = with_regions(model, plain)
    every = {name: plain[name] + regions["positive"][1:] for name in NAMES}
    masactrl = engines(pack)[1]

    def work(session):
        inversion = inverted(pack, session, X[0] / SIGMA)
        return masactrl(session.denoiser, inversion, *(session.conds[n] for n in ("source", "positive", "source"))).run(
            3
        )

    same = run(pack, model, {**every, "positive": every["source"]}, work)
    torch.testing.assert_close(same, X[0] / SIGMA, rtol=1e-3, atol=2e-3)
    with pytest.raises(ValueError, match=r"give (both|all) the same"):
        run(pack, model, {**plain, "positive": every["positive"]}, work)


def test_words_of_a_conditioning_of_several_parts_are_not_known(pack):
    model, plain = comfy_model(pack, "sd1", diffusers_unet("sd1")), conds_of()
    several = {name: [*plain[name], *conditioning("sd1", 4)] for name in NAMES}

    def work(session):
        inversion = inverted(pack, session, X[0] / SIGMA)
        given = [session.conds[name] for name in ("source", "positive", "source")]
        return engines(pack)[0](session.denoiser, inversion, *given).run(3)

    with pytest.raises(ValueError, match="words are those of one text"):
        run(pack, model, several, work)


class Kinds:
    """Notes every site, and attends through the host's own function."""

    def __init__(self):
        self.seen = []

    def wants(self, site):
        return True

    def __call__(self, q, k, v, site):
        self.seen.append((site.kind, site.index, k.shape[-2] - 7 if site.kind == "cross" else 0))
        return site.attend(q, k, v)


def test_tokens_of_other_packs_are_told_apart_and_attend_is_bit_equal(pack):
    model, conds = comfy_model(pack, "sd1", diffusers_unet("sd1")), conds_of()
    patched = model.clone()
    extra = noise(1, 4, 768, seed=8)

    def more(n, context, value, options):
        joined = torch.cat([context, extra.expand(len(context), -1, -1)], 1)
        return n, joined, joined

    def wider(n, context, value, options):
        joined = torch.cat([context, context[:, :5]], 1)
        return n, joined, joined

    patched.set_model_attn2_patch(more)
    patched.set_model_attn1_patch(wider)
    control = Kinds()

    def work(session):
        given = [session.conds[name] for name in NAMES]
        return session.denoiser.batch(X[0], SIGMA, given), session.denoiser.batch(X[0], SIGMA, given, control=control)

    plain, shown = run(pack, patched, conds, work)
    assert all(torch.equal(a, b) for a, b in zip(plain, shown, strict=True))
    kinds = [kind for kind, *_ in control.seen]
    assert kinds == ["self", "cross"] * (len(kinds) // 2) and {n for kind, _, n in control.seen if kind == "cross"} == {
        4
    }
    assert [index for kind, index, _ in control.seen if kind == "cross"] == list(range(len(kinds) // 2))


def test_an_override_of_another_pack_is_what_attend_goes_to(pack):
    model, conds = comfy_model(pack, "sd1", diffusers_unet("sd1")), conds_of()
    patched, seen = model.clone(), []

    def override(function, q, k, v, heads, **options):
        seen.append(heads)
        return function(q, k, v, heads, **options) * 0.9

    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    work = lambda session: [  # noqa: E731
        session.denoiser.batch(X[0], SIGMA, [session.conds["positive"]], control=control)[0]
        for control in (None, Kinds())
    ]
    plain, shown = run(pack, patched, conds, work)
    assert torch.equal(plain, shown) and len(seen) > 8


def test_replaced_self_attention_is_refused_where_it_is_needed(pack):
    model, conds = comfy_model(pack, "sd1", diffusers_unet("sd1")), conds_of()
    patched = model.clone()
    patched.set_model_attn1_replace(lambda q, k, v, options: q, "middle", 0)

    def work(session):
        inversion = inverted(pack, session, X[0] / SIGMA)
        given = [session.conds[name] for name in ("source", "positive", "source")]
        return engines(pack)[1](session.denoiser, inversion, *given).run(3)

    with pytest.raises(ValueError, match="replaced the model's self-attention"):
        run(pack, patched, conds, work)


SOURCE, TARGET = "a portrait of a person, without glasses, smiling", "a portrait of a person, wearing glasses, smiling"
NODES = {
    "prompt_to_prompt.PromptToPromptGuider": {},
    "masactrl.MasaCtrlGuider": {"foreground_words": "person"},
    "plug_and_play.PlugAndPlayGuider": {},
}


def guider(pack, name, demo, inversion, **given):
    module, kind = name.split(".")
    cls = getattr(pack(f"nodes.engines.{module}"), kind)
    values = {
        each.id: each.default for each in cls.define_schema().inputs if getattr(each, "default", None) is not None
    }
    texts = {"source_text": SOURCE, "target_text": TARGET} if "source_text" in values else {}
    values |= texts | {"model": demo[0], "clip": demo[1], "inversion": inversion} | given
    if "edits" not in values:
        values = on_settings(pack("nodes.engines.settings").GuiderOptions, values)
    return cls.execute(**values).args[0]


def invert(pack, demo, steps=3, text=SOURCE, batch=1, **more):
    cls = pack("nodes.inversion.spdinv").SPDInvInversion
    values = {
        each.id: each.default for each in cls.define_schema().inputs if getattr(each, "default", None) is not None
    }
    positive = nodes.CLIPTextEncode().encode(demo[1], text)[0]
    latent = {"samples": noise(batch, 4, 8, 8, seed=2) / demo[0].model.latent_format.scale_factor}
    given = {"model": demo[0], "positive": positive, "latent": latent, "steps": steps, "solver": "ddim"}
    return cls.execute(**(values | given | more)).args


def sample(made, inversion_outputs, sampler="euler"):
    _, latent, sigmas, random, *_ = inversion_outputs
    node = SamplerCustomAdvanced()
    work = getattr(node, "sample", None) or node.execute
    return work(random, made, comfy.samplers.sampler_object(sampler), sigmas, latent)[0]["samples"]


@pytest.mark.parametrize("name", NODES)
def test_the_node_edits_and_an_unchanged_text_gives_the_picture(pack, demo, name):
    outputs = invert(pack, demo, batch=2)
    source = outputs[0].latents[0] / demo[0].model.latent_format.scale_factor
    edited = guider(pack, name, demo, outputs[0], **NODES[name])
    first = sample(edited, outputs)
    assert torch.equal(first, sample(edited, outputs))  # a cached GUIDER keeps nothing
    assert float((first - source).abs().max()) > 0.05
    same = sample(guider(pack, name, demo, outputs[0], target_text=SOURCE, cfg=7.5), outputs)
    torch.testing.assert_close(same, source, rtol=1e-3, atol=2e-3)
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    masked = sample(guider(pack, name, demo, outputs[0], mask=mask), outputs)
    torch.testing.assert_close(masked[..., 4:], source[..., 4:], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="left the path"):
        sample(edited, outputs, "dpmpp_2m")


def test_words_weights_and_blend_reach_the_edit(pack, demo):
    outputs = invert(pack, demo)
    name = "prompt_to_prompt.PromptToPromptGuider"
    plain = sample(guider(pack, name, demo, outputs[0]), outputs)
    for given in (
        {"word_weights": "glasses: 3"},
        {"blend_words": "wearing glasses", "blend_threshold": 0.95},
        {"mode": "replace"},
    ):
        assert not torch.equal(sample(guider(pack, name, demo, outputs[0], **given), outputs), plain), given


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        (
            "prompt_to_prompt.PromptToPromptGuider",
            {"blend_words": "hat"},
            "Neither prompt has 'hat'; their words are: a",
        ),
        (
            "prompt_to_prompt.PromptToPromptGuider",
            {"word_weights": "hat: 2"},
            "has no 'hat'; its words are: a, portrait",
        ),
        (
            "prompt_to_prompt.PromptToPromptGuider",
            {"source_text": " "},
            "source_text is empty and the inversion has no words",
        ),
        ("prompt_to_prompt.PromptToPromptGuider", {"target_text": " "}, "needs both texts"),
        (
            "prompt_to_prompt.PromptToPromptGuider",
            {"target_text": "word " * 90},
            "77 tokens long and the target text 154",
        ),
        ("masactrl.MasaCtrlGuider", {"foreground_words": "without"}, "in the target text"),
        ("plug_and_play.PlugAndPlayGuider", {"target_text": ""}, "target_text is empty"),
        ("plug_and_play.PlugAndPlayGuider", {"mask": torch.zeros(1, 8, 8)}, "mask is empty"),
    ],
)
def test_what_a_person_gets_wrong_is_one_sentence(pack, demo, name, given, sentence):
    inversion = invert(pack, demo, steps=2)[0]
    with pytest.raises(ValueError, match=sentence):
        guider(pack, name, demo, inversion, **given)


def test_host_words_are_those_of_its_tokenizer(pack, demo):
    read = pack("nodes.engines.front").reader(demo[1])
    prompt = read("A cat, (sitting:1.3) on eyeglasses.")
    assert prompt.words == ("a", "cat", ",", "sitting", "on", "eyeglasses", ".") and prompt.length == 77
    assert max(map(len, prompt.positions)) > 1  # a word of several pieces
    long = read("cat " * 90)
    assert long.length == 154 and len(long.words) == 90 and long.positions[75] == (78,)


@pytest.fixture
def semantic(pack, demo):
    """A maker of (guider of several edits, what the inversion gave)."""
    cls = pack("nodes.engines.semantic_guidance").SemanticGuidanceGuider
    values = {
        each.id: each.default for each in cls.define_schema().inputs if getattr(each, "default", None) is not None
    }
    outputs = invert(pack, demo, batch=2)

    def make(**given):
        parts = {"model": demo[0], "clip": demo[1], "inversion": outputs[0]}
        return cls.execute(**(values | parts | given)).args[0], outputs

    return make


def test_several_edits_act_each_in_its_place_and_without_strength_not_at_all(semantic, demo):
    guider, outputs = semantic(edits="wearing glasses\n-smiling: 3 @ 0.9")
    source = outputs[0].latents[0] / demo[0].model.latent_format.scale_factor
    both = sample(guider, outputs)
    assert torch.equal(both, sample(guider, outputs)) and float((both - source).abs().max()) > 0.05
    torch.testing.assert_close(sample(*semantic(edits="wearing glasses: 0")), source, rtol=1e-3, atol=2e-3)
    one = sample(*semantic(edits="wearing glasses", attention=False))
    assert not torch.equal(one, both)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [({"edits": " "}, "There are no edits"), ({"edits": "hat: x"}, "The line 'hat: x' is no edit")],
)
def test_edits_that_are_none_are_refused(semantic, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        semantic(**given)


@pytest.fixture
def concept(pack, tmp_path, monkeypatch):
    """The demo model with a LoRA through the stock loader, its CLIP beside a textual inversion called "mine"."""
    paths = dict(folder_paths.folder_names_and_paths)
    for kind in ("embeddings", "loras"):
        paths[kind] = ([str(tmp_path)], paths[kind][1])
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", paths)
    with torch.inference_mode():
        model, clip, _ = pack("nodes.demo.comfy_model").load_demo_model()
        weights = model.model.state_dict()
        lora = {}
        for name, key in comfy.lora.model_lora_keys_unet(model.model, {}).items():
            if name.startswith("lora_unet") and "attn2_to_v" in name:
                rows, columns = weights[key].shape
                lora |= {f"{name}.lora_up.weight": noise(rows, 2, seed=3) * 0.1}
                lora |= {f"{name}.lora_down.weight": noise(2, columns, seed=4) * 0.1}
        comfy.utils.save_torch_file(lora, str(tmp_path / "mine_lora.safetensors"))
        width = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight.shape[1]
        comfy.utils.save_torch_file({"emb_params": noise(2, width, seed=5) * 0.02}, str(tmp_path / "mine.safetensors"))
        adapted = nodes.LoraLoader().load_lora(model, clip, "mine_lora.safetensors", 1.0, 1.0)
    return (model, clip), adapted


def test_a_concept_on_the_edits_model_over_the_plain_ones_inversion(pack, concept):
    """LoRA and embedding:word through stock loaders: a remark, the concept in the edit, and the picture elsewhere."""
    plain, adapted = concept
    outputs = invert(pack, plain)
    source = outputs[0].latents[0] / plain[0].model.latent_format.scale_factor
    target = "a portrait of a person, wearing embedding:mine, smiling"
    words = {"target_text": target, "blend_words": "embedding:mine, glasses", "mode": "replace", "blend_threshold": 0.9}
    with_lora, without = (
        sample(guider(pack, "prompt_to_prompt.PromptToPromptGuider", parts, outputs[0], **words), outputs)
        for parts in (adapted, plain)
    )
    assert float((with_lora - without).abs().max()) > 1e-3 and float((with_lora - source).abs().max()) > 0.02
    kept = (with_lora - source).abs().amax(1) < 1e-3
    assert 0 < int(kept.sum()) < kept.numel()  # local blend: the picture itself wherever the word is not looked at
    same = {"target_text": SOURCE, "cfg": 5.0}
    for name in NODES:
        made = sample(guider(pack, name, adapted, outputs[0], **same), outputs)
        torch.testing.assert_close(made, source, rtol=1e-3, atol=2e-3)
    said = str(told(pack, adapted, outputs[0], target_text=target))
    assert "the inversion was made with no LoRA or patch and the model now has LoRA" in said
    assert told(pack, plain, outputs[0], target_text=target) is None


def told(pack, parts, inversion, **given):
    """What Prompt-to-Prompt Guider shows on itself."""
    cls = pack("nodes.engines.prompt_to_prompt").PromptToPromptGuider
    values = {
        each.id: each.default for each in cls.define_schema().inputs if getattr(each, "default", None) is not None
    }
    wired = {"source_text": SOURCE, "model": parts[0], "clip": parts[1], "inversion": inversion}
    return cls.execute(**(values | wired | given)).ui


def test_options_and_the_released_engine_reach_the_edit(pack, demo):
    outputs = invert(pack, demo)
    name = "prompt_to_prompt.PromptToPromptGuider"
    plain, *others = (
        sample(guider(pack, name, demo, outputs[0], **given), outputs)
        for given in ({}, {"proximal": 0.7}, {"background_keep": 1.0}, {"mode": "released_spdinv"})
    )
    assert all(float((made - plain).abs().max()) > 1e-3 for made in others)
    read = {"mode": "released_spdinv", "cfg": 1.0, "cross_fraction": 0.0, "self_fraction": 0.0, "proximal": 0.9}
    assert torch.equal(sample(guider(pack, name, demo, outputs[0], **read), outputs), others[2])
    for other in ("masactrl.MasaCtrlGuider", "plug_and_play.PlugAndPlayGuider"):
        off, on = (
            sample(guider(pack, other, demo, outputs[0], proximal=share, background_keep=share), outputs)
            for share in (0.0, 0.6)
        )
        assert float((off - on).abs().max()) > 1e-3


def test_words_in_the_inversion_stand_for_the_source_text(pack, demo, tmp_path):
    """Through a file and for a batch; with none of them the engine says what to do."""
    told = invert(pack, demo, batch=2, clip=demo[1], prompt=SOURCE)
    inversion = type(told[0]).load(told[0].save(tmp_path / "a.safetensors"))
    assert inversion.words == told[0].words and inversion.words.text == SOURCE
    assert f"words kept: {SOURCE}" in told[-1]
    for name, given in (
        ("prompt_to_prompt.PromptToPromptGuider", {"blend_words": "without glasses"}),
        ("masactrl.MasaCtrlGuider", NODES["masactrl.MasaCtrlGuider"]),
        ("plug_and_play.PlugAndPlayGuider", {}),
    ):
        made = [sample(guider(pack, name, demo, inversion, source_text=text, **given), told) for text in ("", SOURCE)]
        assert torch.equal(*made), name
    bare = replace(inversion, words=None)
    for name in ("prompt_to_prompt.PromptToPromptGuider", "masactrl.MasaCtrlGuider"):
        with pytest.raises(ValueError, match="wire clip and prompt into the node that inverts"):
            guider(pack, name, demo, bare, source_text="", **NODES[name])


def test_the_context_of_several_edits_is_the_inversions_words(pack, demo):
    told = invert(pack, demo, clip=demo[1], prompt=SOURCE)
    bare = replace(told[0], words=None)
    name, given = "semantic_guidance.SemanticGuidanceGuider", {"edits": "wearing glasses", "attention": True}

    def made(inversion, context):
        return sample(guider(pack, name, demo, inversion, context=context, **given), told)

    assert torch.equal(made(told[0], ""), made(bare, SOURCE))
    assert torch.equal(made(told[0], "-"), made(bare, "")) and not torch.equal(made(bare, ""), made(bare, SOURCE))


def test_words_that_are_not_the_conditionings_are_told_or_refused(pack, demo):
    inversion, *_, report = invert(pack, demo, steps=1, clip=demo[1], prompt=TARGET)
    assert "prompt, as this CLIP encodes it, is not what the conditioning says" in report
    assert "is not what the conditioning says" not in invert(pack, demo, steps=1, clip=demo[1], prompt=SOURCE)[-1]
    assert invert(pack, demo, steps=1, clip=demo[1])[0].words is None
    with pytest.raises(ValueError, match="clip is not wired"):
        invert(pack, demo, steps=1, prompt=SOURCE)
    with pytest.raises(ValueError, match="prompt takes 154 tokens and the conditioning 77"):
        invert(pack, demo, steps=1, clip=demo[1], prompt="word " * 90)
    blocks = inversion.words.tokens["l"]
    other = replace(inversion, words=replace(inversion.words, tokens={"l": (blocks[0][::-1],)}))
    with pytest.raises(ValueError, match="reads the words in the inversion as other tokens"):
        guider(pack, "plug_and_play.PlugAndPlayGuider", demo, other, source_text="")


def test_every_node_that_makes_an_inversion_keeps_words(pack, demo):
    model, clip = demo[:2]
    positive = nodes.CLIPTextEncode().encode(clip, SOURCE)[0]
    latent = {"samples": noise(1, 4, 8, 8, seed=2) / model.model.latent_format.scale_factor}
    words = {"clip": clip, "prompt": SOURCE}
    shared = {"model": model, "positive": positive, "steps": 2} | words
    made = [
        node(pack, "pix2pix_zero.autocorr", "AutocorrDDIMInversion", latent=latent, **shared),
        node(
            pack, "inversion.reference", "GenerateReference", negative=positive, empty_latent=latent, cfg=2.0, **shared
        ),
    ]
    assert all(outputs[0].words.text == SOURCE for outputs in made)
    bare = invert(pack, demo, steps=2)[0]
    settings = {"model": model, "negative": positive, "max_iterations": 1}
    optimised = node(pack, "inversion.null_text", "NullTextInversion", inversion=bare, **settings, **words)
    kept = node(
        pack, "inversion.null_text", "NullTextInversion", inversion=invert(pack, demo, steps=2, **words)[0], **settings
    )
    assert optimised[0].words.text == kept[0].words.text == SOURCE and f"words kept: {SOURCE}" in kept[-1]


def test_vectors_of_embeddings_are_told_apart_in_every_process(pack):
    """Their numbers are of their content, so that an inversion of yesterday knows them."""
    number = pack("nodes.host.conditioning").token_number
    ones, twos = torch.ones(5), torch.full((5,), 2.0)
    assert number(ones) == number(ones.clone()) == -21421294715068 and number(twos) != number(ones) < 0
    assert number(7) == 7
