"""The CASO nodes in the host, in a prompt, on the demo model: trained, saved, loaded, applied, cancelled, resumed."""

import dataclasses
import os
import re
import sys
from types import SimpleNamespace

import comfy.model_management as mm
import comfy.samplers
import folder_paths
import pytest
import torch
from comfy_extras.nodes_custom_sampler import CFGGuider, SamplerCustomAdvanced
from conftest import PACK, noise
from PIL import Image

import nodes

pytestmark = pytest.mark.skipif(not (PACK / "assets" / "demo" / "unet").is_dir(), reason="assets/demo is not there")

TRAINING = {
    "having_folder": "none", "without_folder": "none", "lookalikes_folder": "none", "kind": "fine",
    "start_words": "", "filename": "mine", "overwrite": False, "resume": False,
}  # fmt: skip
CHOICES = {
    "steps": 4, "batch_size": 1, "seed": 1, "tokens": 1, "learning_rate": 0.05, "cfg": 5.0, "noise_level": 0.3,
    "band": 0.0, "attribute": "mouth", "bank": 1, "held_out": 1, "check_every": 2, "keep_others": 1.0, "look_steps": 4,
    "targets": "smile", "image_size": 64,
}  # fmt: skip
WINDOW = {"window": "custom", "start": 0.5, "end": 0.0, "joined": True}


@pytest.fixture(scope="module")
def demo(pack):
    with torch.inference_mode():
        return pack("nodes.demo.comfy_model").load_demo_model()


@pytest.fixture
def folders(pack, tmp_path, monkeypatch):
    monkeypatch.setattr(pack("nodes.caso.trainer"), "FINAL_STEPS", 4)
    paths = dict(folder_paths.folder_names_and_paths)
    paths["embeddings"] = ([str(tmp_path / "embeddings")], paths["embeddings"][1])
    paths.pop("embedding_trainings", None)
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", paths)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    return tmp_path


@pytest.fixture
def images():
    return noise(4, 64, 64, 3, seed=9).sigmoid()


def node(pack, module, name):
    return getattr(pack(f"nodes.{module}"), name)


def train(pack, demo, images, **changed):
    """In the paper's way, by the demo's classifier, on pictures without labels; ``changed`` are the widgets."""
    given = TRAINING | {"without": images, "attribute_classifier": demo_classifier(pack)} | changed
    return trained(pack, demo, **given)


def demo_classifier(pack):
    return node(pack, "caso.classifier_loader", "AttributeClassifierLoader").execute("demo", "", "", 0, "auto").args[0]


def trained(pack, demo, **given):
    """The trainer's outputs; the settings node's widgets go through that node."""
    settings = node(pack, "caso.trainer_settings", "CASOTrainingSettings")
    module = pack("nodes.caso.trainer_settings")
    names = [field.name for field in dataclasses.fields(module.TrainingChoices)]
    choices = {name: getattr(module.TrainingChoices(), name) for name in names} | CHOICES
    choices |= {name: given.pop(name) for name in names if name in given}
    made = settings.execute(**choices).args[0]
    return node(pack, "caso.trainer", "CASOEmbeddingTrainer").execute(*demo, **given, settings=made).args


def made_up(pack, demo, seed=5):
    """A chosen embedding that no training made."""
    encoder = pack("nodes.host.tokens").HostVectorEncoder(demo[1])
    vectors = {name: noise(1, width, seed=seed) * encoder.token_scale[name] for name, width in encoder.widths.items()}
    return ((pack("core.caso.embedding").SemanticEmbedding(vectors, encoder.encoder_name, "mouth", "smile"), 1.0),)


def edit(pack, demo, chosen, **changed):
    given = {"strength": 3.0, "steps": 6, "interpolate": 0} | WINDOW | changed
    return node(pack, "caso.edit", "CASOEditSampler").execute(*demo[:2], chosen, **given).args


def stock(clip, text):
    return nodes.CLIPTextEncode().encode(clip, text)[0]


def vectors_of(chosen):
    return chosen[0][0].vectors["clip_l"]


@torch.inference_mode()
def test_trained_embedding_is_the_same_in_the_stock_node_and_in_ours(pack, demo, images, folders):
    demo = pack("nodes.demo.comfy_model").load_demo_model()  # its tokenizer looks where embeddings lie now
    before = stock(demo[1], "a smile")[0][0]
    chosen, samples, plot, report, text = train(pack, demo, images)
    assert text == "embedding:mine" and "4 steps on 3 pictures, 1 held out" in report
    # 4 samples, each with a prediction of its own; at most as many unconditional ones; the held picture: inverted for 2
    # of 4 steps, and edited in 2 guided ones after steps 2 and 4
    forward, backward = (float(word) for word in report.split("evaluations: ")[1].replace(" forward,", "").split()[:2])
    assert backward == 4 and forward >= 4 + 2 + 8
    assert "judged by the classifier that taught it, which may be fooled" in report
    assert "held out: the first 1 of without" in report and "pictures drawn: without 4" in report
    assert samples.ndim == plot.ndim == 4 and samples.shape[-1] == plot.shape[-1] == 3
    assert sorted(path.name for path in (folders / "embeddings").iterdir()) == [
        "mine.preview.png",
        "mine.safetensors",
        "mine.training.png",
    ]
    loaded, conditioning, prompt, _ = (
        node(pack, "caso.embeddings", "CASOEmbeddingLoader").execute(demo[1], "mine.safetensors").args
    )
    assert prompt == text and torch.equal(vectors_of(loaded), vectors_of(chosen))
    ((ours, options),), ((theirs, others),) = conditioning, stock(demo[1], text)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(options["pooled_output"], others["pooled_output"], rtol=0, atol=1e-5)
    assert float((ours - stock(demo[1], "")[0][0]).abs().max()) > 1e-3, "something was learned"
    assert torch.equal(stock(demo[1], "a smile")[0][0], before), "the text encoder is as it was"
    assert not ours.requires_grad and not vectors_of(chosen).requires_grad


@torch.inference_mode()
@pytest.mark.parametrize("beside", [False, True])
def test_a_clip_teaches_and_keeps_the_others(pack, demo, images, folders, beside):
    """Zero-shot classes of the demo's CLIP alone, and as further attributes of a classifier of one."""
    scorer = node(pack, "regions.models", "LoadCLIPScorer").execute("demo model", "").args[0]
    texts = node(pack, "caso.classifier_texts", "AttributeClassifierFromTexts")
    others = {"others": "hair: red hair | black hair"}
    if beside:
        tiny = pack("core.classifiers.base").ImageClassifier
        with torch.inference_mode(False), torch.random.fork_rng():
            torch.manual_seed(0)
            trunk = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Tanh(), torch.nn.Flatten())
            own = tiny(trunk, [torch.nn.Linear(4 * 36, 2)], {"tone": ["a", "b"]}, (8, 8), (0.5,) * 3, (0.5,) * 3, "t")
        held = pack("nodes.host.managed_models").manage_classifier(lambda: own)
        managed = texts.execute(scorer, "", "", "", **others, attribute_classifier=held).args[0]
        chosen = {"attribute": "tone", "targets": "b"}
    else:
        managed = texts.execute(scorer, "glasses", "a face with glasses", "a face", **others).args[0]
        chosen = {"attribute": "glasses", "targets": "yes"}
    given = TRAINING | {"without": images, "attribute_classifier": managed, "steps": 2} | chosen
    learned, *_, report, _ = trained(pack, demo, **given)
    assert learned[0][0].info["classifier"] == managed.classifier.fingerprint
    assert vectors_of(learned).isfinite().all() and "2 steps" in report


@torch.inference_mode()
def test_a_published_linear_layer_is_listed_loaded_and_applied(pack, images, folders):
    demo = pack("nodes.demo.comfy_model").load_demo_model()
    (width,) = pack("nodes.host.tokens").HostVectorEncoder(demo[1]).widths.values()
    with torch.inference_mode(False):
        layer = torch.nn.Linear(1, width)
        (folders / "embeddings").mkdir()
        torch.save(torch.nn.Sequential(layer), folders / "embeddings" / "mustache_1_0_epoch19.pt")
    loader = node(pack, "caso.embeddings", "CASOEmbeddingLoader")
    assert "mustache_1_0_epoch19.pt" in pack("nodes.caso.embeddings").embedding_names()
    chosen = loader.execute(demo[1], "mustache_1_0_epoch19.pt").args[0]
    torch.testing.assert_close(vectors_of(chosen), (layer.weight[:, 0] + layer.bias)[None].detach())
    latent = nodes.VAEEncode().encode(demo[2], images[:1])[0]
    assert "mustache_1_0_epoch19 +3" in edit(pack, demo, chosen, latent=latent)[2]


@torch.inference_mode()
def test_cancel_keeps_the_best_and_going_on_ends_as_if_it_never_happened(pack, demo, images, folders, monkeypatch):
    straight = vectors_of(train(pack, demo, images, steps=6)[0])
    shown = []

    def press(value, total, preview=None, **named):
        shown.append(preview)
        if value == 3:
            mm.interrupt_current_processing(True)

    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", press)
    with pytest.raises(mm.InterruptProcessingException):
        train(pack, demo, images, steps=6, filename="again")
    assert any(preview is not None for preview in shown), "a picture at the first look"
    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", None)
    kept = pack("core.caso.embedding").SemanticEmbedding.load(folders / "embeddings" / "again.safetensors")
    assert kept.info["steps"] == 2
    chosen, *_ = train(pack, demo, images, steps=6, filename="again", resume=True)
    torch.testing.assert_close(vectors_of(chosen), straight, rtol=0, atol=0)


@torch.inference_mode()
def test_cancel_before_the_first_look_keeps_something_and_shows_the_curves(pack, demo, images, folders, monkeypatch):
    shown = []

    def press(value, total, preview=None, **named):
        shown.append(preview)
        if value == 2:
            mm.interrupt_current_processing(True)

    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", press)
    monkeypatch.setattr(pack("nodes.caso.trainer"), "SAVE_EVERY", 1)
    with pytest.raises(mm.InterruptProcessingException):
        train(pack, demo, images, check_every=0)
    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", None)
    assert all(preview is not None and preview[1].width >= 640 for preview in shown), "curves without a look"
    kept = pack("core.caso.embedding").SemanticEmbedding.load(folders / "embeddings" / "mine.safetensors")
    assert kept.info["steps"] == 2 and (folders / "embeddings" / "mine.preview.png").is_file()
    straight = vectors_of(train(pack, demo, images, check_every=0, filename="straight")[0])
    resumed = vectors_of(train(pack, demo, images, check_every=0, resume=True)[0])
    torch.testing.assert_close(resumed, straight, rtol=0, atol=0)


@torch.inference_mode()
def test_overwrite_off_protects_the_pictures_and_the_progress(pack, demo, images, folders, monkeypatch):
    embeddings, states = folders / "embeddings", folders / "embedding_trainings"
    train(pack, demo, images)
    (embeddings / "mine.safetensors").unlink()
    before = {path: path.read_bytes() for path in (*embeddings.iterdir(), *states.iterdir())}
    assert len(before) == 3
    with pytest.raises(ValueError, match=r"mine\.preview\.png exists already"):
        train(pack, demo, images)
    for name in ("preview", "training"):
        (embeddings / f"mine.{name}.png").rename(folders / f"{name}.png")
    with pytest.raises(ValueError, match="progress of another training of this name"):
        train(pack, demo, images)
    (folders / "preview.png").rename(embeddings / "mine.preview.png")
    (folders / "training.png").rename(embeddings / "mine.training.png")
    assert {path: path.read_bytes() for path in before} == before
    train(pack, demo, images, resume=True)
    assert (embeddings / "mine.safetensors").is_file()
    (embeddings / "mine.preview.png").write_bytes(b"a person's own")
    with pytest.raises(ValueError, match=r"mine\.preview\.png exists already and is not from the training"):
        train(pack, demo, images, resume=True)
    assert (embeddings / "mine.preview.png").read_bytes() == b"a person's own"
    train(pack, demo, images, resume=True, overwrite=True)
    assert (embeddings / "mine.preview.png").read_bytes() != b"a person's own"


@torch.inference_mode()
@pytest.mark.parametrize("cancel", [False, True])
def test_a_full_disk_loses_no_training(pack, demo, images, folders, monkeypatch, cancel):
    """The models' disk fills up at the second step; the output folder is on another one."""
    straight = vectors_of(train(pack, demo, images, filename="straight", steps=2)[0])
    writing, fsync, full = pack("core.writing"), os.fsync, []

    def filling(handle):
        if full and os.readlink(f"/proc/self/fd/{handle}").startswith(str(folders / "embedding")):
            raise OSError(28, "No space left on device")
        fsync(handle)

    def fill(value, total, preview=None, **named):
        if value == 2:
            full.append(True)
            if cancel:
                mm.interrupt_current_processing(True)

    (folders / "output").mkdir()
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(folders / "output"))
    monkeypatch.setattr(writing.os, "fsync", filling)
    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", fill)
    chosen, *_, report, text = train(pack, demo, images, check_every=1, steps=4 if cancel else 2)
    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", None)
    assert "It is kept as mine.safetensors in ComfyUI's output folder" in report and text == ""
    assert str(folders) not in report and "The picture is in this node's output." in report
    kept = pack("core.caso.embedding").SemanticEmbedding.load(folders / "output" / "mine.safetensors")
    assert torch.equal(kept.vectors["clip_l"], vectors_of(chosen))
    if not cancel:
        torch.testing.assert_close(vectors_of(chosen), straight, rtol=0, atol=0)
    assert [path.name for path in (folders / "embeddings").iterdir() if "mine" in path.name] == []
    assert not list(folders.rglob("*.part"))


@torch.inference_mode()
def test_loss_and_accuracy_are_written_under_the_node_while_it_runs(pack, demo, images, folders, monkeypatch):
    from comfy_execution.utils import CurrentNodeContext

    written = []
    stand_in = SimpleNamespace(
        instance=SimpleNamespace(send_progress_text=lambda text, node_id: written.append((text, node_id)))
    )
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=stand_in))
    with CurrentNodeContext("prompt", "7", None):
        train(pack, demo, images)
    assert [node_id for _, node_id in written] == ["7"] * 8
    assert written.pop(0)[0].startswith("It is ready and tells apart")  # the classifier's loader
    assert re.fullmatch(r"After an edit, \d of 1 pictures that it did not learn from have it\.", written[6][0])
    assert written[5][0] == "editing the held-out pictures with what is kept"
    assert re.fullmatch(r"estimated before the first step: .* and [\d.]+ GB for 4 steps of 1 pictures", written[0][0])
    assert re.fullmatch(r"step 1 of 4: loss \d+\.\d{3}, \d+% as asked; [\d.]+ s left", written[1][0])
    assert re.fullmatch(r"step 2 of 4: .* as asked; held-out: loss [\d.]+, success \d+%; [\d.]+ s left", written[2][0])


@torch.inference_mode()
def test_a_finished_training_resumed_keeps_its_samples_and_figures(pack, demo, images, folders):
    first = train(pack, demo, images)
    preview = folders / "embeddings" / "mine.preview.png"
    before = preview.read_bytes()
    second = train(pack, demo, images, resume=True)
    assert torch.equal(vectors_of(first[0]), vectors_of(second[0]))
    assert torch.equal(first[1], second[1]) and preview.read_bytes() == before and not torch.equal(second[1], second[2])
    looks = [[line for line in report.splitlines() if "success" in line] for report in (first[3], second[3])]
    assert looks[0] == looks[1] != []
    curves = train(pack, demo, images, filename="alone", held_out=0, steps=1)
    assert "nothing was judged" in curves[3] and torch.equal(curves[1], curves[2])


@torch.inference_mode()
def test_of_few_pictures_a_quarter_is_held_out_at_most(pack, demo, images, folders):
    report = train(pack, demo, images, held_out=24, steps=1)[3]
    held = -(-len(images) // 4)
    assert f"on {len(images) - held} pictures, {held} held out" in report


@torch.inference_mode()
def test_a_draft_vae_decodes_all_but_the_last_steps_and_is_compared_with_itself(
    pack, demo, images, folders, monkeypatch
):
    module, calls, runs = pack("nodes.caso.trainer"), [], []
    draft = pack("nodes.demo.comfy_model").load_demo_model()[2]
    assert draft is not demo[2] and draft.first_stage_model is not demo[2].first_stage_model
    for name, vae in (("full", demo[2]), ("draft", draft)):
        decode = vae.first_stage_model.decode
        shift = 0.5 if name == "draft" else 0.0  # another look, of which the training must learn nothing

        def counted(latent, name=name, decode=decode, shift=shift):
            calls.append(name)
            return decode(latent) + shift

        monkeypatch.setattr(vae.first_stage_model, "decode", counted)

    class Watched(module.EmbeddingTrainer):
        def __init__(self, *given):
            super().__init__(*given)
            runs.append(self)

        def advance(self):
            calls.append("step")
            return super().advance()

    monkeypatch.setattr(module, "EmbeddingTrainer", Watched)
    train(
        pack, demo, images, draft_vae=draft, steps=5, check_every=0, augmentation=0.0, flip=False, learning_rate=0.0001
    )
    steps = " ".join(calls).split("step")[1:]
    assert [set(step.split()) for step in steps] == [{"draft"}] * 4 + [{"full"}]
    first = runs[0].history[0]
    assert abs(first.others) < 1e-4, "the neutral start changes nothing, whatever decodes it"
    with torch.no_grad():
        looks = [runs[0].objective.other_attributes(images[:1].movedim(-1, 1) + shift) for shift in (0.0, 0.25)]
    assert float(runs[0].objective._changed(*looks)) > 1e-3, "what the two decoders show differs to the classifier"


@torch.inference_mode()
@pytest.mark.parametrize("layout", ["automatic1111", "diffusers"])
def test_other_programs_pickled_textual_inversions_are_what_the_stock_node_reads(pack, folders, layout):
    demo = pack("nodes.demo.comfy_model").load_demo_model()
    vectors = vectors_of(made_up(pack, demo))
    (folders / "embeddings").mkdir()
    name, saved = (
        "theirs.pt",
        {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "theirs", "step": 9},
    )
    if layout == "diffusers":
        name, saved = "theirs.bin", {"<thing>": vectors}
    torch.save(saved, folders / "embeddings" / name)
    chosen, conditioning, prompt, _ = node(pack, "caso.embeddings", "CASOEmbeddingLoader").execute(demo[1], name).args
    torch.testing.assert_close(vectors_of(chosen), vectors, rtol=0, atol=0)
    assert prompt == "embedding:theirs"
    torch.testing.assert_close(conditioning[0][0], stock(demo[1], prompt)[0][0], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_what_the_trainer_refuses(pack, demo, images, folders):
    (folders / "embeddings").mkdir()
    (folders / "embeddings" / "mine.safetensors").write_bytes(b"precious")
    for changed, said in (
        ({}, "exists already"),
        ({"attribute": ""}, "knows several attributes"),
        ({"targets": "grin"}, "has no class 'grin'"),
        ({"without_folder": "faces", "filename": "b"}, "Both folders and images"),
        ({"without": None, "filename": "c"}, "There are no pictures"),
        ({"targets": ""}, "has no class 'yes'"),
        ({"loss": "pictures"}, "There are no pictures that have it"),
        ({"attribute_classifier": None}, "There is nothing to learn from"),
    ):
        with pytest.raises(ValueError, match=said):
            train(pack, demo, images, **changed)
    assert (folders / "embeddings" / "mine.safetensors").read_bytes() == b"precious"


@pytest.fixture
def classes(pack, tmp_path, monkeypatch):
    """Two folders of pictures and one of look-alikes in the host's input folder; classifiers of them learn briefly."""
    monkeypatch.setattr(pack("core.caso.look"), "EPOCHS", 2)
    monkeypatch.setattr(pack("core.caso.look"), "SIDE", 24)
    for number, (name, count) in enumerate((("bright", 9), ("dark", 8), ("grey", 3))):
        (tmp_path / "input" / "kinds" / name).mkdir(parents=True)
        for picture in range(count):
            pixels = (noise(64, 64, 3, seed=100 * number + picture).sigmoid() * 100 + (140, 0, 70)[number]).byte()
            Image.fromarray(pixels.numpy()).save(tmp_path / "input" / "kinds" / name / f"{picture}.png")
    (tmp_path / "input" / "kinds" / "dark" / "broken.png").write_bytes(b"no picture")
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    return tmp_path / "input" / "kinds"


FOLDERS = TRAINING | {
    "having_folder": "kinds/bright",
    "without_folder": "kinds/dark",
    "lookalikes_folder": "kinds/grey",
    "targets": "",
    "kind": "fine",
    "attribute": "",
}


@torch.inference_mode()
def test_two_folders_teach_without_a_classifier_and_the_report_says_what_was_done(pack, demo, folders, classes):
    given = FOLDERS | {"held_out": 2, "bank": -1, "batch_size": 2}
    chosen, samples, _, report, text = trained(pack, demo, **given)
    embedding = chosen[0][0]
    assert (embedding.target, text) == ("bright", "embedding:mine")
    assert embedding.info["settings"]["contrast"] > 0 and embedding.info["settings"]["classification"] == 0
    assert embedding.info["classifier"] == ""
    assert "learned: bright (9 pictures) against dark (8) and its look-alikes grey (3)" in report
    assert "held out of dark: 0.png, 1.png" in report and "skipped 1 unreadable: dark/broken.png" in report
    assert re.search(
        r"success \d+% in edits of the held-out pictures at strength [\d.]+, judged by a second opinion", report
    )
    drawn = re.search(r"pictures drawn: bright (\d+), (.*)", report)
    counts = [int(word) for word in re.findall(r"\d+", drawn[2])]
    assert int(drawn[1]) == 4 * 2 == sum(counts)
    # backward: 2 + 2 pictures a step
    assert "16 backward" in report and samples.shape[0] == 1
    assert "window learned: from 0.5, focus 0.03; its strength of 5 stands for 5)" in report
    assert embedding.info["edit"] == {"start": 0.5, "focus": 0.03, "strength": 5.0}
    whole = trained(pack, demo, **(given | {"filename": "again"}))[0]
    assert torch.equal(vectors_of(chosen), vectors_of(whole)), "the same seed, the same embedding"


@torch.inference_mode()
def test_a_classifier_that_is_wired_beside_two_folders_teaches_nothing_unless_asked(pack, demo, folders, classes):
    given = FOLDERS | {"held_out": 2, "bank": -1, "steps": 2}
    alone = trained(pack, demo, **given)
    beside = trained(pack, demo, **(given | {"filename": "beside", "attribute_classifier": demo_classifier(pack)}))
    assert torch.equal(vectors_of(alone[0]), vectors_of(beside[0]))
    assert "the classifier taught nothing: pictures did" in beside[3] and "taught nothing" not in alone[3]


@torch.inference_mode()
def test_cancelled_folders_tell_what_was_kept_and_go_on_to_the_same_end(pack, demo, folders, classes, monkeypatch):
    given = FOLDERS | {"held_out": 2, "bank": -1, "steps": 6}
    straight = vectors_of(trained(pack, demo, **(given | {"filename": "straight"}))[0])
    told = []

    def press(value, total, preview=None, **named):
        if (value, total) == (3, 6):  # not while the pictures are read
            mm.interrupt_current_processing(True)

    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", press)
    monkeypatch.setattr(pack("nodes.caso.trainer"), "progress_text", told.append)
    with pytest.raises(mm.InterruptProcessingException):
        trained(pack, demo, **given)
    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", None)
    assert told[-1] == (
        "Cancelled at step 3 of 6. Kept: mine.safetensors, step 2. Switch resume on to go on from step 3."
    )
    chosen = trained(pack, demo, **(given | {"resume": True}))[0]
    torch.testing.assert_close(vectors_of(chosen), straight, rtol=0, atol=0)


@torch.inference_mode()
def test_what_the_trainer_refuses_of_folders(pack, demo, folders, classes):
    for changed, said in (
        ({"without_folder": "none"}, "choose without_folder, too"),
        ({"having_folder": "none", "without_folder": "none", "lookalikes_folder": "none"}, "choose them, or wire"),
        ({"without_folder": "kinds/nowhere"}, "is no folder inside"),
        ({"without_folder": "../kinds"}, "leads to another folder"),
        ({"lookalikes_folder": "kinds/bright"}, "have the same name"),
        ({"having_folder": "kinds/grey", "lookalikes_folder": "none", "held_out": 2}, "a second opinion needs"),
        ({"targets": "bright, dark"}, "one class is learned at a time"),
        ({"loss": "classifier"}, "There is nothing to learn from"),
    ):
        with pytest.raises(ValueError, match=said):
            trained(pack, demo, **FOLDERS | changed)
    assert not (folders / "embeddings").exists() or not list((folders / "embeddings").iterdir())


@torch.inference_mode()
def test_edit_equals_the_core_on_diffusers(pack, demo, images):
    """The whole node (encoding, inversion, window) against the same steps on the same weights in diffusers."""
    chosen = made_up(pack, demo)
    latent = nodes.VAEEncode().encode(demo[2], images[:2])[0]
    edited, strip, report, _ = edit(pack, demo, chosen, latent=latent, interpolate=3, vae=demo[2])
    theirs, backend, editing = (
        pack("core.demo.model").load_demo_model(),
        pack("core.demo.builders"),
        pack("core.caso.editing"),
    )
    vector_encoder = backend.demo_vector_encoder(theirs)
    uncond = pack("core.token_vectors").empty_condition(vector_encoder)
    term = pack("core.caso.embedding").GuidanceTerm(chosen[0][0].condition(vector_encoder), 3.0)
    source = pack("core.spdinv.invert").invert(
        theirs.denoiser(), pack("nodes.host.latents").latent_to_model(demo[0], latent), uncond, 6
    )
    expected = editing.semantic_edit(theirs.denoiser(), source, uncond, [term], editing.Window(0.5))
    found = pack("nodes.host.latents").latent_to_model(demo[0], edited)
    assert float((found - expected).norm() / expected.norm()) < 1e-3
    rows, paint = strip.unflatten(0, (2, 3)), nodes.VAEDecode().decode
    unedited, nothing, *_ = edit(pack, demo, chosen, latent=latent, strength=0.0)
    assert "set interpolate to 2" in nothing.message, "a node wired to a strip that was not made is told"
    torch.testing.assert_close(rows[:, 2], paint(demo[2], edited)[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(rows[:, 1], paint(demo[2], unedited)[0], rtol=0, atol=1e-4)
    assert float((rows[:, 0] - rows[:, 2]).abs().max()) > 1e-2
    assert "smile +3" in report


@torch.inference_mode()
def test_guider_paints_what_the_edit_sampler_paints(pack, demo, images):
    model, clip, vae = demo
    chosen = made_up(pack, demo)
    latent = nodes.VAEEncode().encode(vae, images[:2])[0]

    def work(session):
        return pack("core.spdinv.invert").invert(session.denoiser, session.latent, session.conds["positive"], 6, "ddim")

    inversion = pack("nodes.host.sampling").run(model, latent, {"positive": stock(clip, "")}, work)
    mask = torch.zeros(1, 64, 64)
    mask[:, :, 32:] = 1
    edited, _, report, _ = edit(pack, demo, chosen, inversion=inversion, mask=mask)
    assert "with a prompt" not in report
    guider = (
        node(pack, "caso.edit", "CASOGuider")
        .execute(model, clip, chosen, inversion, strength=3.0, mask=mask, **WINDOW)
        .args[0]
    )
    start, sigmas, still = pack("nodes.common.reports").inversion_values(model, inversion)[1:]
    sampler = SamplerCustomAdvanced()
    sample = getattr(sampler, "sample", None) or sampler.execute
    again = sample(still, guider, comfy.samplers.sampler_object("euler"), sigmas, start)[0]["samples"]
    assert float((again - edited["samples"]).norm() / edited["samples"].norm()) < 1e-3
    source = pack("nodes.host.latents").latent_from_model(model, inversion.latents[0])["samples"]
    torch.testing.assert_close(edited["samples"][..., :3], source[..., :3], rtol=0, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("solver, prompt", [("ddim", ""), ("auto", "a smile"), ("auto", "")])
def test_what_an_inversion_left_over_is_taken_off_and_told(pack, demo, images, solver, prompt):
    """Strength 0 gives the picture itself, whatever it was inverted by and under."""
    model, clip, vae = demo
    latent = nodes.VAEEncode().encode(vae, images[:1])[0]
    invert = node(pack, "inversion.spdinv", "SPDInvInversion")
    widgets = {slot.id: slot.default for slot in invert.define_schema().inputs if hasattr(slot, "default")}
    given = widgets | {"model": model, "positive": stock(clip, prompt), "latent": latent, "steps": 6, "solver": solver}
    inversion = invert.execute(**given).args[0]
    edited, _, report, _ = edit(pack, demo, made_up(pack, demo), inversion=inversion, strength=0.0)
    exact = solver == "ddim" or prompt != ""
    assert ("is taken off" in report) == exact
    assert f"{6 if exact else 3} network evaluations per image" in report
    torch.testing.assert_close(edited["samples"], latent["samples"], rtol=0, atol=1e-4 if exact else 2e-2)


@torch.inference_mode()
def test_focus_is_the_cores_in_all_three_nodes(pack, demo, images):
    """Focused edits and pictures against core's functions with a term of that focus, on the same loaded MODEL."""
    model, clip, vae = demo
    chosen, focus, mask = made_up(pack, demo), 0.2, torch.zeros(1, 64, 64)
    mask[:, 16:40, 16:40] = 1
    editing, embedding = pack("core.caso.editing"), pack("core.caso.embedding")
    latent = nodes.VAEEncode().encode(vae, images[:2])[0]
    conds = {
        "positive": stock(clip, ""),
        "term": chosen[0][0].condition(pack("nodes.host.tokens").HostVectorEncoder(clip)),
    }

    def core(share):
        def work(session):
            uncond, terms = session.conds["positive"], [embedding.GuidanceTerm(session.conds["term"], 3.0, focus=share)]
            source = pack("core.spdinv.invert").invert(session.denoiser, session.latent, uncond, 6, "ddim")
            noise = torch.randn(session.latent.shape, generator=torch.Generator().manual_seed(7))
            window = editing.Window(0.5)
            edited = editing.semantic_edit(session.denoiser, source, uncond, terms, window, mask=mask, exact=True)
            return source, edited, editing.generate(session.denoiser, noise, uncond, terms, 4)

        return pack("nodes.host.sampling").run(model, latent, conds, work)

    inversion, expected, pictured = core(focus)
    _, whole, _ = core(1.0)
    edited, _, report, _ = edit(pack, demo, chosen, inversion=inversion, mask=mask, focus=focus)
    found = pack("nodes.host.latents").latent_to_model(model, edited)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    effect = float((expected - whole).norm())
    assert effect > 0.02, "focus does something"
    assert "guided where it pulls most (20 %)" in report
    assert "pulls most" not in edit(pack, demo, chosen, inversion=inversion)[2]
    guider = node(pack, "caso.edit", "CASOGuider").execute(
        model, clip, chosen, inversion, strength=3.0, mask=mask, focus=focus, **WINDOW
    )
    start, sigmas, still = pack("nodes.common.reports").inversion_values(model, inversion)[1:]
    sampler = SamplerCustomAdvanced()
    sample = getattr(sampler, "sample", None) or sampler.execute
    again = sample(still, guider.args[0], comfy.samplers.sampler_object("euler"), sigmas, start)[0]
    assert (
        float((pack("nodes.host.latents").latent_to_model(model, again) - expected).norm()) < 0.1 * effect
    )  # a host's sampler rounds
    generate = node(pack, "caso.generate", "CASOGenerate").execute
    given = {"strength": 3.0, "steps": 4, "seed": 7, "focus": focus} | WINDOW | {"window": "whole"}
    made, report = generate(model, clip, chosen, latent, **given).args
    torch.testing.assert_close(pack("nodes.host.latents").latent_to_model(model, made), pictured, rtol=0, atol=1e-5)
    assert "guided where it pulls most (20 %)" in report


@torch.inference_mode()
def test_against_is_the_cores_in_sampler_and_guider(pack, demo, images):
    """An edit away from another embedding, against core's function with such a term, on the same loaded MODEL."""
    model, clip, vae = demo
    chosen, away = made_up(pack, demo), made_up(pack, demo, seed=9)
    editing, embedding = pack("core.caso.editing"), pack("core.caso.embedding")
    latent, encoder = nodes.VAEEncode().encode(vae, images[:2])[0], pack("nodes.host.tokens").HostVectorEncoder(clip)
    conds = {"positive": stock(clip, "")}
    conds |= {name: part[0][0].condition(encoder) for name, part in (("term", chosen), ("against", away))}

    def work(session):
        uncond, opposite = session.conds["positive"], [session.conds["against"]]
        source = pack("core.spdinv.invert").invert(session.denoiser, session.latent, uncond, 6, "ddim")
        terms = [embedding.GuidanceTerm(session.conds["term"], 3.0, against=opposite)]
        return source, editing.semantic_edit(session.denoiser, source, uncond, terms, editing.Window(0.5), exact=True)

    inversion, expected = pack("nodes.host.sampling").run(model, latent, conds, work)
    edited, _, report, _ = edit(pack, demo, chosen, inversion=inversion, against=away)
    found = pack("nodes.host.latents").latent_to_model(model, edited)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert "smile +3, away from smile" in report
    plain, _, report, _ = edit(pack, demo, chosen, inversion=inversion)
    effect = float((pack("nodes.host.latents").latent_to_model(model, plain) - expected).norm())
    assert effect > 0.02 and "away from" not in report
    guider = node(pack, "caso.edit", "CASOGuider").execute(
        model, clip, chosen, inversion, strength=3.0, against=away, **WINDOW
    )
    start, sigmas, still = pack("nodes.common.reports").inversion_values(model, inversion)[1:]
    sampler = SamplerCustomAdvanced()
    sample = getattr(sampler, "sample", None) or sampler.execute
    again = sample(still, guider.args[0], comfy.samplers.sampler_object("euler"), sigmas, start)[0]
    assert float((pack("nodes.host.latents").latent_to_model(model, again) - expected).norm()) < 0.1 * effect


@torch.inference_mode()
def test_generate_is_stock_guidance_by_the_embedding(pack, demo):
    """Against SamplerCustomAdvanced with the embedding as prompt, the empty one as negative, and strength as cfg."""
    model, clip, _ = demo
    chosen, seed = made_up(pack, demo), 7
    empty = {"samples": torch.zeros(2, 4, 8, 8)}
    window = WINDOW | {"window": "whole"}
    generate = node(pack, "caso.generate", "CASOGenerate").execute
    made, _ = generate(model, clip, chosen, empty, strength=3.0, steps=5, seed=seed, **window).args
    grid = (
        pack("nodes.host.sampling")
        .run(model, empty, {"positive": stock(clip, "")}, lambda session: session.denoiser.sigma_grid(5))
        .flip(0)
    )
    guide = CFGGuider()
    positive = chosen[0][0].condition(pack("nodes.host.tokens").HostVectorEncoder(clip))
    guider = (getattr(guide, "get_guider", None) or guide.execute)(model, positive, stock(clip, ""), 3.0)[0]

    class Noise:
        seed = 0

        def generate_noise(self, latent):
            return (
                torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
                * (1 + grid[0] ** 2).sqrt()
                / grid[0]
            )

    sampler = SamplerCustomAdvanced()
    sample = getattr(sampler, "sample", None) or sampler.execute
    expected = sample(Noise(), guider, comfy.samplers.sampler_object("euler"), grid, empty)[0]["samples"]
    assert float((made["samples"] - expected).norm() / expected.norm()) < 1e-4


@torch.inference_mode()
def test_combined_strengths_multiply(pack, demo, images):
    latent = nodes.VAEEncode().encode(demo[2], images[:1])[0]
    combine = node(pack, "caso.embeddings", "CASOCombine").execute
    first, second = made_up(pack, demo), made_up(pack, demo, 6)
    both, _ = combine(first, -0.5, 2.0, 1.0, 1.0, second=second).args
    assert [strength for _, strength in both] == [-0.5, 2.0]
    nested, _ = combine(both, 2.0, 1.0, 1.0, 1.0).args
    assert [strength for _, strength in nested] == [-1.0, 4.0]
    alone, _ = combine(first, 1.0, 0.0, 1.0, 1.0, second=second).args
    found, wanted = (edit(pack, demo, chosen, latent=latent)[0]["samples"] for chosen in (alone, first))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    foreign = pack("core.caso.embedding").SemanticEmbedding({"clip_l": torch.ones(1, 768)})
    with pytest.raises(ValueError, match="combine embeddings of one kind"):
        combine(first, 1.0, 1.0, 1.0, 1.0, second=((foreign, 1.0),))
    with pytest.raises(ValueError, match="belongs to the text encoder clip_l 768"):
        edit(pack, demo, ((foreign, 1.0),), latent=latent)


@torch.inference_mode()
def test_the_window_learned_is_the_one_a_training_names_and_fine_of_other_embeddings(pack, demo, images):
    latent = nodes.VAEEncode().encode(demo[2], images[:1])[0]
    ((embedding, _),) = made_up(pack, demo)
    knows = dataclasses.replace(embedding, info={"edit": {"start": 0.5, "focus": 0.1, "strength": 4.0}})
    ((_, relative),) = chosen = pack("nodes.caso.embeddings").chosen_one(knows)
    assert relative == 4.0 / 5.0, "the sampler's default strength stands for the kind's"
    asked = {"latent": latent, "strength": 5.0, "window": "learned"}
    found, _, report, _ = edit(pack, demo, chosen, **asked)
    wanted = edit(pack, demo, ((embedding, 1.0),), latent=latent, strength=4.0, focus=0.1)[0]
    torch.testing.assert_close(found["samples"], wanted["samples"], rtol=0, atol=0)
    assert "window from 0.5, as the embedding was trained for" in report
    plain, _, report, _ = edit(pack, demo, ((embedding, 1.0),), **asked)
    fine = edit(pack, demo, ((embedding, 1.0),), latent=latent, strength=5.0, window="fine")[0]
    torch.testing.assert_close(plain["samples"], fine["samples"], rtol=0, atol=0)
    assert "does not say which window" in report


def test_words_that_learning_cannot_begin_from_are_refused_before_anything_is_trained(
    pack, demo, images, folders, monkeypatch
):
    module = pack("nodes.caso.trainer")
    for name in ("second", "encoded"):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("something was trained or encoded"))
    with pytest.raises(ValueError, match="'a very long face' are 4 tokens, but tokens is 1"):
        trained(pack, demo, **TRAINING | {"having": images, "without": images, "start_words": "a very long face"})


@torch.inference_mode()
def test_a_photo_comes_back_at_its_own_size_as_the_stock_nodes_would_paint_it(pack, demo, images):
    chosen, photo = made_up(pack, demo), images[:1, :, :61]  # the VAE reads 56 of these 61 columns
    edited, *_, picture = edit(pack, demo, chosen, photo=photo, vae=demo[2])
    latent = nodes.VAEEncode().encode(demo[2], photo)[0]
    wanted, _, _, nothing = edit(pack, demo, chosen, latent=latent)
    torch.testing.assert_close(edited["samples"], wanted["samples"], rtol=0, atol=0)
    assert picture.shape == photo.shape and nothing.message.startswith("CASO Edit Sampler paints the edit itself only")
    painted = nodes.VAEDecode().decode(demo[2], wanted)[0]
    left = (photo.shape[2] - painted.shape[2]) // 2
    torch.testing.assert_close(picture[:, :, left : left + painted.shape[2]], painted, rtol=0, atol=0)
    assert float((picture - photo).abs().max()) > 0.05, "it was edited"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "Wire one of latent, inversion and photo"),
        ({"photo": torch.zeros(1, 64, 64, 3)}, "A photo is read and painted by a VAE"),
        ({"latent": {"samples": torch.zeros(1, 4, 8, 8)}, "interpolate": 1}, "interpolate is 1"),
        ({"latent": {"samples": torch.zeros(1, 4, 8, 8)}, "interpolate": 3}, "wire one into CASO Edit Sampler"),
        ({"latent": {"samples": torch.zeros(1, 4, 8, 8)}, "window": "zzz"}, "no window 'zzz'"),
        ({"latent": {"samples": torch.zeros(1, 4, 8, 8)}, "start": 0.2, "end": 0.4}, "start > end"),
    ],
)
def test_what_the_edit_sampler_refuses(pack, demo, changed, said):
    with pytest.raises(ValueError, match=said):
        edit(pack, demo, made_up(pack, demo), **changed)
