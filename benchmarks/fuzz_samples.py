"""A small valid file or folder of every kind that the pack reads, with the loaders that read it.

Whoever adds a loader adds a sample here; tests/core/reading/test_loaders.py fails until that is done.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from semantic_editing.benchmarks.elite_layout import elite_tensors
from semantic_editing.benchmarks.nvidia_snapshot import generator_tensors, network, write_snapshot
from semantic_editing.benchmarks.original_layout import original
from semantic_editing.core.caso.embedding import SemanticEmbedding
from semantic_editing.core.caso.settings import TrainingSettings
from semantic_editing.core.caso.textual_inversion import pickled_vectors
from semantic_editing.core.caso.training import EmbeddingTrainer
from semantic_editing.core.caso.training_state import resume_training, save_training
from semantic_editing.core.classifiers.convnet import AttributeClassifier, load_classifier
from semantic_editing.core.classifiers.frozen_features import FeatureClassifier, FeatureTrunk
from semantic_editing.core.classifiers.loaders import load_image_classifier, save_image_classifier
from semantic_editing.core.classifiers.transformers_folder import load_transformers_folder
from semantic_editing.core.deltaedit import style_diffusion_training
from semantic_editing.core.deltaedit.encoder import CompactEncoder, E4eEncoder
from semantic_editing.core.deltaedit.encoder_files import load_encoder, save_encoder
from semantic_editing.core.deltaedit.generator_files import load_generator, save_generator
from semantic_editing.core.deltaedit.latents import Latents, LatentsBuilder, Origin, load_latents
from semantic_editing.core.deltaedit.mapper import FLAT, DeltaMapper
from semantic_editing.core.deltaedit.mapper import RELEASED as RELEASED_MAPPER
from semantic_editing.core.deltaedit.mapper_files import (
    load_mapper,
    load_relevance,
    published_layout,
    save_mapper,
    save_relevance,
)
from semantic_editing.core.deltaedit.relevance import COVARIANCE, Relevance
from semantic_editing.core.deltaedit.relevance_probe import ProbeSettings, RelevanceProbe
from semantic_editing.core.deltaedit.style_code import StyleLayout
from semantic_editing.core.deltaedit.style_diffusion import StyleDiffusion, load_style_diffusion
from semantic_editing.core.deltaedit.style_unet import UNetShape
from semantic_editing.core.deltaedit.stylegan2 import StyleGAN2
from semantic_editing.core.deltaedit.training import MapperSettings, MapperTrainer
from semantic_editing.core.demo.builders import DemoDecoder, demo_vector_encoder
from semantic_editing.core.demo.data import FOLDER, TOKENIZER
from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.denoiser import ModelIdentity
from semantic_editing.core.diffusers.checkpoint import load_checkpoint
from semantic_editing.core.diffusers.single_file import load_single_file
from semantic_editing.core.distillation.files import load_editor, save_editor
from semantic_editing.core.distillation.network import DistilledEditor, EditorShape
from semantic_editing.core.distillation.pairs import EditPairs, read_pairs
from semantic_editing.core.distillation.training import DistillationSettings, DistillationTrainer
from semantic_editing.core.elite.mapper import load_elite_mapper
from semantic_editing.core.files import load_legacy_tensor, load_tensors, load_weights, save_tensors
from semantic_editing.core.images.captions import read_captions
from semantic_editing.core.images.files import read_picture, read_whole_picture, square_pictures
from semantic_editing.core.inversion import Inversion, Words
from semantic_editing.core.metrics.identity import load_identity
from semantic_editing.core.metrics.lpips import load_lpips
from semantic_editing.core.metrics.pie_bench import read_pie_bench
from semantic_editing.core.models.arcface import IdentityNetwork
from semantic_editing.core.models.captioner import load_captioner
from semantic_editing.core.models.clip import load_clip, load_open_clip, load_transformers_clip
from semantic_editing.core.models.text_generator import load_text_generator
from semantic_editing.core.models.vision_features import load_vision_features, load_vision_folder
from semantic_editing.core.pix2pix_zero.edit_direction import EditDirection
from semantic_editing.core.pix2pix_zero.shift_field import ShiftField
from semantic_editing.core.prints.weights import weight_print
from semantic_editing.core.reading.pickles import read_network_pickle, read_table_pickle, read_tensor_pickle
from semantic_editing.core.regions.edit_tokens import load_token_model
from semantic_editing.core.regions.network import RegionNetwork
from semantic_editing.core.training import resume_training as resume_network_training
from semantic_editing.core.training import save_training as save_network_training

#: The smallest of OpenCLIP's architectures with patches.
OPEN_CLIP = "ViT-S-32-alt"


@dataclass(frozen=True)
class Sample:
    """One kind of file.

    Attributes:
        make: writes it into an empty folder and returns the path that a loader is given.
        load: reads that path.
        loaders: what ``load`` calls, by dotted name below the package.
        needs: packages without which there is no such file.
        slow: a load takes more than a tenth of a second; it is tried less often.
    """

    make: Callable[[Path], Path]
    load: Callable[[Path], Any]
    loaders: tuple[str, ...]
    needs: tuple[str, ...] = ()
    slow: bool = False

    def missing(self) -> str:
        """The first package of :attr:`needs` that this Python lacks, or "" """
        return next((name for name in self.needs if find_spec(name) is None), "")


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers of a normal distribution."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _seeded(make: Callable[[], Any]) -> Any:
    """What ``make`` builds of random weights, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


# Files of this pack
# ----------------------------------------------------------------------------------------------------------------


def _inversion(folder: Path) -> Path:
    identity = ModelIdentity(
        "sd1", 4, "eps", (0.1, -0.2, 0.3), weight_print([torch.ones(3, 3), torch.zeros(3)]), "abc", ("a patch",)
    )
    counts = [torch.ones(2, 1) for _ in range(3)]
    made = Inversion(
        _random(3, 1, 4, 4, 4), torch.tensor([0.0, 1.0, 3.0]), *counts, identity, "spdinv/auto",
        {"embeds": _random(1, 7, 8)}, {"autocorrelation": 0.1, "notes": ["a", {"b": None}]},
        words=Words("a cat", {"l": ((5, 1, 2, 6, 6, 6, -9),)}),
    )  # fmt: skip
    return made.save(folder / "a.safetensors")


def _direction(folder: Path) -> Path:
    field = ShiftField(_random(5, 8).half(), _random(5, 8).half())
    made = EditDirection(_random(1, 77, 8), _random(1, 6), "clip_l 768", "cat", "dog", 512, field, _random(8))
    return made.save(folder / "a.safetensors")


def _tensors(tensors: dict[str, torch.Tensor]) -> Callable[[Path], Path]:
    """Writes a safetensors file that says nothing of itself."""
    return lambda folder: save_tensors(folder / "a.safetensors", tensors, {})


def _saved(value: Any, name: str, **options: Any) -> Callable[[Path], Path]:
    """Makes a file of ``torch.save``."""

    def make(folder: Path) -> Path:
        torch.save(value() if callable(value) else value, folder / name, **options)
        return folder / name

    return make


def _embedding(folder: Path) -> Path:
    made = SemanticEmbedding({"clip_l": _random(2, 8)}, "clip_l 768", "mouth", "smile", "caso", {"steps": 3})
    return made.save(folder / "a.safetensors")


@cache
def _trainer() -> EmbeddingTrainer:
    """A training on the demo model that has just begun."""
    demo = load_demo_model()
    judge = load_image_classifier(FOLDER / "classifier.safetensors")
    settings = TrainingSettings("glasses", ("glasses",), steps=1, batch=1, check_every=0)
    return EmbeddingTrainer(
        demo.denoiser(), demo_vector_encoder(demo), DemoDecoder(demo), judge, _random(1, 4, 16, 16), settings
    )


def _training(folder: Path) -> Path:
    """The state after one step; the figures of the step are made up, for taking one takes seconds."""
    path = save_training(_trainer(), folder / "a.safetensors")
    tensors, metadata = load_tensors(path)
    tensors |= {f"{moment}.clip_l": torch.ones_like(tensors["move.clip_l"]) for moment in ("exp_avg", "exp_avg_sq")}
    tensors |= {"best.clip_l": _random(*tensors["move.clip_l"].shape), "held": torch.zeros(1, 2).double()}
    progress = {"step": 1, "smoothed": 0.3, "best_step": 0, "best_score": 0.5}
    metadata["progress"] = json.dumps(progress)
    return save_tensors(path, tensors | {"history": torch.ones(1, 5).double()}, metadata, overwrite=True)


def _mapper(folder: Path) -> Path:
    """With everything that such a file may hold."""
    made = _seeded(lambda: DeltaMapper([[4, 4], [4], [4, 2]], 6, FLAT, hidden=5))
    made.generator, made.clip, made.facts = "a generator", "a CLIP", {"faces": "12"}
    made.layout = StyleLayout(((4, 4), (8, 4), (16, 4), (64, 4), (64, 2)), ((4, 4), (64, 2)))
    return save_mapper(folder / "a.safetensors", made, Relevance(_random(18, 6), COVARIANCE), half=True)


def _published_mapper(folder: Path) -> Path:
    """The authors' table for the smallest published generator, in fp16."""
    layout = published_layout(768, "")
    with torch.device("meta"):
        net = DeltaMapper(layout.levels, 2, RELEASED_MAPPER)
    state = OrderedDict((key, torch.zeros(value.shape).half()) for key, value in net.named_parameters())
    torch.save(state, folder / "net_face.pth")
    return folder / "net_face.pth"


def _array(folder: Path) -> Path:
    np.save(folder / "fs3.npy", _random(12, 6).numpy())
    return folder / "fs3.npy"


def _demo_classifier(folder: Path) -> Path:
    classes = {"glasses": ["none", "glasses"], "hair": ["red", "black", "blond"]}
    net = _seeded(lambda: AttributeClassifier([4, 6], 5, classes, 16))
    return save_tensors(folder / "a.safetensors", net.state_dict(), {"classes": json.dumps(classes), "size": "16"})


def _own_classifier(folder: Path) -> Path:
    net = load_image_classifier(_demo_classifier(folder))
    return save_image_classifier(net, folder / "a.safetensors", {"steps": 3}, overwrite=True)


#: A trunk that is no part of the file that is read over it.
PROBED = FeatureTrunk(lambda images: images.mean((2, 3)), "a CLIP", 8, 3)


def _linear_probe(folder: Path) -> Path:
    net = FeatureClassifier(PROBED, [_seeded(lambda: nn.Linear(3, 2))], {"glasses": ["none", "glasses"]}, "a")
    return save_image_classifier(net, folder / "a.safetensors", {})


def _timm_folder(folder: Path) -> Path:
    import timm

    net = _seeded(lambda: timm.create_model("test_vit", num_classes=3))
    place = folder / "pets"
    place.mkdir()
    save_tensors(place / "model.safetensors", net.state_dict(), {"format": "pt"})
    prepared = {"input_size": [3, 160, 160], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    config = {"architecture": "test_vit", "num_classes": 3, "label_names": ["a", "b", "c"], "pretrained_cfg": prepared}
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return place


def _own_transformers_classifier(folder: Path) -> Path:
    source = _transformers_classifier(folder)
    net = load_image_classifier(source)
    path = save_image_classifier(net, folder / "a.safetensors", {})
    _remove(source)
    return path


def _region_network(folder: Path) -> Path:
    return RegionNetwork(8, 3, 2, vision="dino").save(folder / "a.safetensors")


def _small_generator() -> StyleGAN2:
    """8 pixels."""
    return _seeded(lambda: StyleGAN2(8, {4: 6, 8: 5}, 7, 2))


def _generator(folder: Path) -> Path:
    return save_generator(folder / "a.safetensors", _small_generator(), half_precision=True)


def _port_generator(folder: Path) -> Path:
    """As the PyTorch port's training leaves it."""
    state = _small_generator().state_dict()
    kept = {"g": state, "g_ema": state, "g_optim": {"state": {0: {"step": 3}}, "param_groups": []}}
    torch.save(kept | {"args": Namespace(size=8), "latent_avg": _random(7)}, folder / "a.pt")
    return folder / "a.pt"


def _nvidia_generator(folder: Path) -> Path:
    made = network(generator_tensors({4: 6, 8: 5}, 7, 2), {"c_dim": 0, "synthesis.b4.conv1.conv_clamp": 256})
    return write_snapshot(folder / "a.pkl", {"training_set_kwargs": {}, "G": made, "G_ema": made, "augment_pipe": None})


#: Of the trunk of a small e4e, its pictures, its rows of W+.
STAGES, SIDE, ROWS = ((16, 1), (16, 1), (16, 1), (32, 1)), 32, 6


def _style_encoder(folder: Path) -> Path:
    made = _seeded(lambda: CompactEncoder(4, 8, 16, (8, 8), 12))
    return save_encoder(folder / "a.safetensors", made)


def _published_style_encoder(folder: Path) -> Path:
    """Laid out as e4e_ffhq_encode.pt: a generator beside the encoder, and the training's settings."""
    weights = _seeded(lambda: E4eEncoder(ROWS, 32, SIDE, STAGES)).state_dict()
    mean = weights.pop("latent_avg")
    state = {f"encoder.{name}": tensor for name, tensor in weights.items()}
    state |= {"decoder.input.input": _random(1, 8, 4, 4), "decoder.noises.noise_0": _random(1, 1, 4, 4)}
    settings = {"encoder_type": "Encoder4Editing", "stylegan_size": 16, "lpips_lambda": 0.8, "resume": None}
    torch.save({"state_dict": state, "latent_avg": mean, "opts": settings}, folder / "e4e.pt")
    return folder / "e4e.pt"


STYLE_LAYOUT = StyleLayout(((4, 2), (16, 2), (64, 2)), ((4, 2),))


def _style_diffusion() -> StyleDiffusion:
    """The smallest that has all parts."""
    shape = UNetShape(size=8, fold=2, width=4, multipliers=(1, 2), blocks=1, attention=(2,), embedding=4, places=True)
    return _seeded(lambda: StyleDiffusion(shape, STYLE_LAYOUT, "a generator"))


def _style_diffusion_file(folder: Path) -> Path:
    return _style_diffusion().save(folder / "a.safetensors")


def _style_diffusion_trainer() -> style_diffusion_training.DiffusionTrainer:
    """A training that has just begun."""
    pictures = style_diffusion_training.StyledPictures(
        torch.zeros(4, 8, 8, 3, dtype=torch.uint8), _random(4, 6), STYLE_LAYOUT, "a generator"
    )
    settings = style_diffusion_training.DiffusionSettings(steps=1, batch=2)
    return style_diffusion_training.DiffusionTrainer(_style_diffusion(), pictures, settings)


def _style_diffusion_training(folder: Path) -> Path:
    trainer = _style_diffusion_trainer()
    next(trainer.steps())
    return style_diffusion_training.save_training(trainer, folder / "a.safetensors")


def _resumed_style_diffusion(path: Path) -> style_diffusion_training.DiffusionTrainer:
    trainer = _style_diffusion_trainer()
    style_diffusion_training.resume_training(trainer, path)
    return trainer


@cache
def _latents() -> Latents:
    """Faces of a world with three channels a level."""
    layout = StyleLayout(((4, 3), (16, 3), (64, 3)), ((4, 2),))
    names = tuple(f"seed {number}" for number in range(40))
    parts = _random(40, 4).half(), _random(40, 9, seed=1).half(), _random(9, seed=2), _random(2, seed=3)
    return Latents(*parts, layout, names, Origin("generator", "clip"))


def _latents_file(folder: Path) -> Path:
    generator = _seeded(lambda: StyleGAN2(8, {4: 2, 8: 2}, style_dim=4, mapping_layers=1))
    builder = LatentsBuilder(lambda: generator, None, folder / "a.safetensors", Origin("generator", "clip"))
    with torch.no_grad():
        code = generator.styles(_random(3, generator.layout.rows, 4))
    builder.append(["a.png", "b.png", "seed 3"], _random(3, 5), code)
    builder.rows.skipped.append("c.png")
    return builder.save(builder.path)


@cache
def _mapper_trainer() -> MapperTrainer:
    """A training that has come to its first look."""
    trainer = MapperTrainer(_latents(), MapperSettings(hidden=4, steps=2, batch=4, check_every=1))
    trainer.advance()
    return trainer


#: The smallest network that an edit is distilled into.
TINY_EDITOR = EditorShape(2, (8, 8), 1)


def _elite_mapper(folder: Path) -> Path:
    torch.save(OrderedDict(elite_tensors()), folder / "global_mapper.pt")
    return folder / "global_mapper.pt"


def _distilled_edit(folder: Path) -> Path:
    return save_editor(folder / "a.safetensors", _seeded(lambda: DistilledEditor(TINY_EDITOR)))


@cache
def _distilled_trainer() -> DistillationTrainer:
    pictures = (_random(4, 3, 8, 8).sigmoid() * 255).byte()
    settings = DistillationSettings(steps=2, batch=2, check_every=1)
    return DistillationTrainer(EditPairs(pictures, pictures.flip(3)), TINY_EDITOR, settings)


def _distillation(folder: Path) -> Path:
    trainer = _distilled_trainer()
    if not trainer.step:
        trainer.advance()
    return save_network_training(trainer, folder / "a.safetensors")


def _pair_folders(folder: Path) -> Path:
    for name, seed in (("before", 0), ("after", 1)):
        (folder / name).mkdir()
        pixels = (_random(16, 16, 3, seed=seed).sigmoid() * 255).byte().numpy()
        Image.fromarray(pixels).save(folder / name / "a.png")
    return folder / "before"


def _mapper_training(folder: Path) -> Path:
    return save_network_training(_mapper_trainer(), folder / "a.safetensors")


@cache
def _probe() -> RelevanceProbe:
    """A probing of which five channels are done."""

    class Other:
        identity, layout = "generator", _latents().layout

    clip = Other()
    clip.identity = "clip"
    return RelevanceProbe(Other, clip, _latents(), ProbeSettings())


def _probing(folder: Path) -> Path:
    probe = _probe()
    probe.done = 5
    return probe.save(folder / "a.safetensors")


# Networks of other programs
# ----------------------------------------------------------------------------------------------------------------


class BinaryClassifier(nn.Module):
    """Shaped as CASO's published classifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1))


def _torchvision_network(name: str, **options: Any) -> Callable[[Path], Path]:
    """Makes a file of a torchvision network's weights, which are zeros: they take no time to draw."""

    def make(folder: Path) -> Path:
        from torchvision import models

        with torch.device("meta"):
            net = getattr(models, name)(weights=None)
        state = {
            key: torch.zeros(value.shape, dtype=torch.half if value.is_floating_point() else value.dtype)
            for key, value in net.state_dict().items()
        }
        torch.save(OrderedDict(state), folder / f"{name}.pth", **options)
        return folder / f"{name}.pth"

    return make


def _face_network(folder: Path) -> Path:
    """ArcFace's IR-SE50 of zeros, as bytes to keep it small."""
    net = IdentityNetwork.__new__(IdentityNetwork)
    nn.Module.__init__(net)
    net._build()
    state = OrderedDict((key, torch.zeros(value.shape, dtype=torch.uint8)) for key, value in net.state_dict().items())
    torch.save(state, folder / "model_ir_se50.pth", _use_new_zipfile_serialization=False)
    return folder / "model_ir_se50.pth"


def _open_clip_file(folder: Path) -> Path:
    import open_clip

    net = open_clip.create_model(OPEN_CLIP, pretrained=None, load_weights=False)
    return save_tensors(folder / "a.safetensors", {key: value.half() for key, value in net.state_dict().items()}, {})


def _dino_file(folder: Path) -> Path:
    width, shapes = 64, {"cls_token": (1, 1, 64), "pos_embed": (1, 5, 64), "patch_embed.proj.bias": (64,)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 4, 4), "norm.weight": (width,), "norm.bias": (width,)}
    for layer, rows, columns in (
        ("attn.qkv", 192, 64), ("attn.proj", 64, 64), ("mlp.fc1", 128, 64), ("mlp.fc2", 64, 128),
    ):  # fmt: skip
        shapes |= {f"blocks.0.{layer}.weight": (rows, columns), f"blocks.0.{layer}.bias": (rows,)}
    for layer in ("norm1", "norm2"):
        shapes |= {f"blocks.0.{layer}.{part}": (width,) for part in ("weight", "bias")}
    return save_tensors(folder / "a.safetensors", {key: _random(*shape) for key, shape in shapes.items()}, {})


# Model folders
# ----------------------------------------------------------------------------------------------------------------

TINY = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
PREPROCESSOR = {
    "do_resize": True, "size": {"height": 16, "width": 16}, "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.5, 0.6, 0.7], "resample": 2,
}  # fmt: skip


def _transformers_folder(class_name: str, **settings: Any) -> Callable[[Path], Path]:
    """Makes a folder of a transformers model."""

    def make(folder: Path) -> Path:
        import transformers

        cls = getattr(transformers, class_name)
        place = folder / "model"
        _seeded(lambda: cls(cls.config_class(**settings))).save_pretrained(place)
        (place / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR), encoding="utf-8")
        return place

    return make


LABELS = {"id2label": {0: "cat", 1: "dog", 2: "hen"}, "label2id": {"cat": 0, "dog": 1, "hen": 2}}
_transformers_classifier = _transformers_folder("ViTForImageClassification", **TINY, **LABELS)
_resnet_folder = _transformers_folder(
    "ResNetForImageClassification", embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", **LABELS
)
CLIP_TEXT = {
    "vocab_size": 49408, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "projection_dim": 16, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407,
}  # fmt: skip


def _tokenizer(folder: Path, **options: Any) -> None:
    from transformers import CLIPTokenizer

    CLIPTokenizer.from_pretrained(TOKENIZER, local_files_only=True, **options).save_pretrained(folder)


def _clip_folder(folder: Path) -> Path:
    make = _transformers_folder("CLIPModel", text_config=CLIP_TEXT, vision_config=TINY, projection_dim=16)
    place = make(folder)
    _tokenizer(place)
    return place


#: Heads 64 wide, as a file by itself is read.
WIDE = {"hidden_size": 64, "num_attention_heads": 1}


def _vision_file(folder: Path) -> Path:
    settings = {key: value for key, value in TINY.items() if key != "intermediate_size"} | WIDE
    return _transformers_folder("Dinov2Model", **settings)(folder) / "model.safetensors"


def _clip_file(folder: Path) -> Path:
    sides = {"text_config": CLIP_TEXT | WIDE, "vision_config": TINY | WIDE}
    return _transformers_folder("CLIPModel", **sides, projection_dim=16)(folder) / "model.safetensors"


SMALL_TEXT = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "encoder_hidden_size": 16, "max_position_embeddings": 64,
}  # fmt: skip
PIECES = ["[PAD]", "[UNK]", "[DEC]", "[SEP]", "a", "cat", "##s", "on", "the", "mat", ",", ".", "'", "s", "-", "!"]


def _blip_folder(folder: Path) -> Path:
    text = SMALL_TEXT | {
        "vocab_size": len(PIECES), "pad_token_id": 0, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3,
    }  # fmt: skip
    make = _transformers_folder(
        "BlipForConditionalGeneration", text_config=text, vision_config=TINY, image_text_hidden_size=8
    )
    place = make(folder)
    (place / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return place


def _blip2_folder(folder: Path) -> Path:
    """BLIP-2 with OPT: the pieces of its tokenizer are bytes."""
    text = {
        "model_type": "opt", "vocab_size": 24, "hidden_size": 16, "ffn_dim": 16, "word_embed_proj_dim": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64,
        "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2,
    }  # fmt: skip
    make = _transformers_folder(
        "Blip2ForConditionalGeneration", text_config=text, vision_config=TINY, qformer_config=SMALL_TEXT,
        num_query_tokens=4, image_token_index=23, image_text_hidden_size=8,
    )  # fmt: skip
    place = make(folder)
    words = ("a", "cat", "dog", "on", "the", "mat", "and", "two")
    pieces = ["<s>", "<pad>", "</s>", "\u010a", *(f"\u0120{word}" for word in words), "s", ","]
    (place / "vocab.json").write_text(
        json.dumps({piece: index for index, piece in enumerate(pieces)}), encoding="utf-8"
    )
    return place


def _blip2_t5_folder(folder: Path) -> Path:
    """BLIP-2 with T5: the pieces of its tokenizer are SentencePiece's."""
    words = ("a", "cat", "dog", "on", "the", "mat", "and", "two")
    pieces = ["<pad>", "</s>", "<unk>", *(f"\u2581{word}" for word in words), "s", ",", "\u00e9"]
    text = {
        "model_type": "t5", "vocab_size": 24, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1,
        "num_decoder_layers": 1, "num_heads": 2, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
        "bos_token_id": 1, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    }  # fmt: skip
    make = _transformers_folder(
        "Blip2ForConditionalGeneration", text_config=text, vision_config=TINY, qformer_config=SMALL_TEXT,
        num_query_tokens=4, image_token_index=23, image_text_hidden_size=8,
    )  # fmt: skip
    place = make(folder)
    listed = [[piece, -float(index)] for index, piece in enumerate(pieces)]
    text_of = json.dumps({"model": {"type": "Unigram", "vocab": listed}})
    (place / "tokenizer.json").write_text(text_of, encoding="utf-8")
    return place


def _text_generator_folder(class_name: str, **settings: Any) -> Callable[[Path], Path]:
    """A text model of a dozen words."""

    def make(folder: Path) -> Path:
        place = _transformers_folder(class_name, vocab_size=12, **settings)(folder)
        words = ("</s>", "<unk>", "a", "cat", "dog", "photo", "of", "on", "the", "mat", "sits", ".")
        model = {"type": "WordLevel", "vocab": {word: index for index, word in enumerate(words)}, "unk_token": "<unk>"}
        listed = {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None, "model": model,
        }  # fmt: skip
        (place / "tokenizer.json").write_text(json.dumps(listed), encoding="utf-8")
        return place

    return make


_gpt2_folder = _text_generator_folder(
    "GPT2LMHeadModel", n_embd=16, n_layer=1, n_head=2, n_positions=64, eos_token_id=0, bos_token_id=0
)
_t5_folder = _text_generator_folder(
    "T5ForConditionalGeneration", d_model=16, d_kv=8, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2,
    decoder_start_token_id=0, pad_token_id=0, eos_token_id=0,
)  # fmt: skip


def _sharded_folder(folder: Path) -> Path:
    """A vision model in two numbered files with an index."""
    place = _transformers_folder("ViTModel", **TINY)(folder)
    tensors, _ = load_tensors(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    names, listing = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_tensors(place / file, {name: tensors[name] for name in part}, {"format": "pt"})
        listing |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": listing}
    (place / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return place


def _tiny_pipeline() -> Any:
    """A Stable Diffusion 1 of random weights as diffusers' pipeline."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
    )
    vae = AutoencoderKL(
        block_out_channels=(32,) * 4,
        layers_per_block=1,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    return StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=CLIPTextModel(CLIPTextConfig(**CLIP_TEXT)),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER, local_files_only=True),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _diffusers_folder(folder: Path) -> Path:
    _seeded(_tiny_pipeline).save_pretrained(folder / "model")
    return folder / "model"


def _single_file(folder: Path) -> Path:
    return save_tensors(folder / "a.safetensors", original(_seeded(_tiny_pipeline), "sd1"), {})


def _token_folder(folder: Path) -> Path:
    from diffusers import AmusedScheduler, UVit2DModel, VQModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    place = folder / "model"
    _seeded(
        lambda: VQModel(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=4,
            num_vq_embeddings=24,
            mid_block_add_attention=False,
            lookup_from_codebook=True,
        )
    ).save_pretrained(place / "vqvae")
    widths = ("hidden_size", "cond_embed_dim", "encoder_hidden_size", "in_channels", "block_out_channels")
    _seeded(
        lambda: UVit2DModel(
            **dict.fromkeys((*widths, "intermediate_size"), 16),
            micro_cond_encode_dim=2,
            micro_cond_embed_dim=10,
            vocab_size=25,
            codebook_size=24,
            num_res_blocks=1,
            block_num_heads=2,
            num_hidden_layers=1,
            num_attention_heads=2,
            sample_size=6,
        )
    ).save_pretrained(place / "transformer")
    AmusedScheduler(mask_token_id=24).save_pretrained(place / "scheduler")
    text = _seeded(lambda: CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_TEXT)))
    text.save_pretrained(place / "text_encoder")
    _tokenizer(place / "tokenizer", model_max_length=77)
    (place / "model_index.json").write_text(json.dumps({"_class_name": "AmusedPipeline"}), encoding="utf-8")
    return place


def _demo_folder(folder: Path) -> Path:
    """The demo model's parts."""
    import shutil

    for part in ("unet", "vae", "clip", "scheduler"):
        shutil.copytree(FOLDER / part, folder / "demo" / part)
    for name in ("vocab.json", "demo.json"):
        shutil.copy(FOLDER / name, folder / "demo" / name)
    return folder / "demo"


# Pictures and listings
# ----------------------------------------------------------------------------------------------------------------


def _picture(ending: str, **options: Any) -> Callable[[Path], Path]:
    """Makes a small picture."""

    def make(folder: Path) -> Path:
        pixels = (_random(24, 32, 3).sigmoid() * 255).byte().numpy()
        Image.fromarray(pixels).save(folder / f"a{ending}", **options)
        return folder / f"a{ending}"

    return make


def _picture_folder(folder: Path) -> Path:
    for number in range(3):
        _picture(".png")(folder).rename(folder / f"{number}.png")
    return folder


def _captioned_folder(folder: Path) -> Path:
    """One picture with a text of its own, two in a list."""
    place = folder / "faces"
    place.mkdir()
    _picture_folder(place)
    (place / "0.txt").write_text("a face, smiling\n", encoding="utf-8")
    captions = {"1.png": "a face, sad", "2": ["a face with glasses", "glasses"]}
    (place / "captions.json").write_text(json.dumps(captions), encoding="utf-8")
    return place


def _pie_bench(folder: Path) -> Path:
    place = folder / "bench"
    (place / "annotation_images" / "0").mkdir(parents=True)
    Image.new("RGB", (512, 512)).save(place / "annotation_images" / "0" / "1.jpg")
    entry = {
        "image_path": "0/1.jpg", "original_prompt": "a [cat]", "editing_prompt": "a [dog]", "editing_type_id": "1",
        "blended_word": "cat dog", "mask": [0, 5, 600, 20],
    }  # fmt: skip
    (place / "mapping_file.json").write_text(json.dumps({"7": entry}), encoding="utf-8")
    return place


def _remove(folder: Path) -> None:
    """Delete a folder of files."""
    import shutil

    shutil.rmtree(folder)


OLD = {"_use_new_zipfile_serialization": False}
A1111 = {"string_to_token": {"*": 265}, "string_to_param": {"*": _random(2, 8)}, "name": "smile", "step": 10}
STATE = OrderedDict((("0.weight", _random(8, 1)), ("0.bias", _random(8))))

SAMPLES: dict[str, Sample] = {
    "inversion": Sample(_inversion, Inversion.load, ("core.inversion.Inversion.load",)),
    "edit direction": Sample(
        _direction,
        EditDirection.load,
        ("core.pix2pix_zero.edit_direction.EditDirection.load", "core.files.load_tensors"),
    ),
    "published direction": Sample(
        _saved(_random(1, 77, 8), "cat.pt"),
        EditDirection.load,
        ("core.files.load_legacy_tensor", "core.reading.pickles.read_tensor_pickle"),
    ),
    "published direction, old": Sample(_saved(_random(1, 77, 8), "cat.pt", **OLD), load_legacy_tensor, ()),
    "captioner": Sample(_blip_folder, load_captioner, ("core.models.captioner.load_captioner",), ("transformers",)),
    "captioner, BLIP-2": Sample(_blip2_folder, load_captioner, (), ("transformers",)),
    "captioner, BLIP-2 with T5": Sample(_blip2_t5_folder, load_captioner, (), ("transformers",)),
    "text model": Sample(
        _gpt2_folder, load_text_generator, ("core.models.text_generator.load_text_generator",), ("transformers",)
    ),
    "text model, T5": Sample(_t5_folder, load_text_generator, (), ("transformers",)),
    "embedding": Sample(_embedding, SemanticEmbedding.load, ("core.caso.embedding.SemanticEmbedding.load",)),
    "embedding of A1111": Sample(
        _saved(A1111, "a.pt"),
        SemanticEmbedding.load,
        ("core.caso.textual_inversion.pickled_vectors", "core.reading.pickles.read_network_pickle"),
    ),
    "embedding of diffusers": Sample(_saved({"<smile>": _random(2, 8)}, "a.bin"), SemanticEmbedding.load, ()),
    "embedding in a list": Sample(
        _saved([{"<a>": _random(2, 768)}, {"<b>": _random(1280), "<c>": _random(1, 768)}], "a.pt"), pickled_vectors, ()
    ),
    "embedding of SDXL": Sample(
        _tensors({"text_encoders_0": _random(2, 768), "text_encoders_1": _random(3, 1280)}), SemanticEmbedding.load, ()
    ),
    "embedding in a LoRA": Sample(
        _tensors({"bundle_emb.a.clip_l": _random(2, 8), "lora_te.lora_up.weight": _random(2, 2)}),
        SemanticEmbedding.load,
        (),
    ),
    "embedding of CASO": Sample(_saved(STATE, "a.pt"), pickled_vectors, ()),
    "training": Sample(
        _training, lambda path: resume_training(_trainer(), path), ("core.caso.training_state.resume_training",)
    ),
    "demo classifier": Sample(_demo_classifier, load_classifier, ("core.classifiers.convnet.load_classifier",)),
    "own classifier": Sample(
        _own_classifier, load_image_classifier, ("core.classifiers.loaders.load_image_classifier",)
    ),
    "own classifier of transformers": Sample(_own_transformers_classifier, load_image_classifier, ()),
    "classifier folder": Sample(
        _transformers_classifier,
        load_transformers_folder,
        (
            "core.classifiers.transformers_folder.load_transformers_folder",
            "core.models.model_folder.load_transformers",
            "core.models.model_folder.read_config",
        ),
    ),
    "linear probe": Sample(_linear_probe, lambda path: load_image_classifier(path, backbone=PROBED), ()),
    "classifier folder of timm": Sample(
        _timm_folder,
        load_image_classifier,
        ("core.classifiers.timm_folder.load_timm_folder",),
        ("timm", "torchvision"),
        slow=True,
    ),
    "torchvision classifier, old": Sample(
        _torchvision_network("resnet18", **OLD), load_image_classifier, (), ("torchvision",), slow=True
    ),
    "classifier folder, ResNet": Sample(_resnet_folder, load_image_classifier, ()),
    "published classifier": Sample(_saved(lambda: _seeded(BinaryClassifier), "a.pt"), read_network_pickle, ()),
    "table of weights": Sample(
        _saved(STATE, "a.pth"),
        lambda path: load_weights(path, "perceptual network"),
        ("core.files.load_weights", "core.reading.pickles.read_table_pickle"),
    ),
    "table of weights, old": Sample(
        _saved(STATE, "a.pth", **OLD), lambda path: read_table_pickle(path, "face network"), ()
    ),
    "direction as a pickle": Sample(
        _saved(_random(2, 77, 8).half(), "a.pt"), lambda path: read_tensor_pickle(path, "edit direction"), ()
    ),
    "torchvision classifier": Sample(
        _torchvision_network("resnet50"), load_image_classifier, (), ("torchvision",), slow=True
    ),
    "network of LPIPS": Sample(
        _torchvision_network("squeezenet1_1", **OLD),
        lambda path: load_lpips(path, "squeeze"),
        ("core.metrics.lpips.load_lpips",),
        ("torchvision", "torchmetrics"),
        slow=True,
    ),
    "face network": Sample(_face_network, load_identity, ("core.metrics.identity.load_identity",), slow=True),
    "StyleGAN2": Sample(_generator, load_generator, ("core.deltaedit.generator_files.load_generator",)),
    "StyleGAN2 of the port": Sample(_port_generator, load_generator, ()),
    "StyleGAN2 of NVIDIA": Sample(_nvidia_generator, load_generator, ("core.reading.pickles.read_snapshot_pickle",)),
    "region network": Sample(_region_network, RegionNetwork.load, ("core.regions.network.RegionNetwork.load",)),
    "style encoder": Sample(
        _style_encoder, lambda path: load_encoder(path, 4, 8), ("core.deltaedit.encoder_files.load_encoder",)
    ),
    "published style encoder": Sample(
        _published_style_encoder,
        lambda path: load_encoder(path, ROWS, 32, stages=STAGES, side=SIDE),
        (),
    ),
    "style diffusion": Sample(
        _style_diffusion_file, load_style_diffusion, ("core.deltaedit.style_diffusion.load_style_diffusion",)
    ),
    "style diffusion training": Sample(
        _style_diffusion_training,
        _resumed_style_diffusion,
        ("core.deltaedit.style_diffusion_training.resume_training",),
    ),
    "delta latents": Sample(_latents_file, load_latents, ("core.deltaedit.latents.load_latents",)),
    "mapper training": Sample(
        _mapper_training,
        lambda path: resume_network_training(_mapper_trainer(), path) or True,
        ("core.training.resume_training",),
    ),
    "relevance probing": Sample(
        _probing,
        lambda path: _probe().resume(path) or True,
        ("core.deltaedit.relevance_probe.RelevanceProbe.resume",),
    ),
    "vision file": Sample(_dino_file, load_vision_features, ("core.models.vision_features.load_vision_features",)),
    "vision file of transformers": Sample(_vision_file, load_vision_features, ()),
    "vision folder": Sample(
        _transformers_folder("Dinov2Model", **{k: v for k, v in TINY.items() if k != "intermediate_size"}),
        lambda path: load_vision_folder(path),
        ("core.models.vision_features.load_vision_folder",),
    ),
    "vision folder of two files": Sample(_sharded_folder, load_vision_features, ()),
    "CLIP folder": Sample(
        _clip_folder,
        load_transformers_clip,
        ("core.models.clip.load_transformers_clip", "core.models.model_folder.load_clip_tokenizer"),
        slow=True,
    ),
    "CLIP file": Sample(_clip_file, load_clip, ("core.models.clip.load_clip",), slow=True),
    "OpenCLIP file": Sample(
        _open_clip_file,
        lambda path: load_open_clip(path, OPEN_CLIP),
        ("core.models.clip.load_open_clip",),
        ("open_clip",),
        slow=True,
    ),
    "diffusers folder": Sample(
        _diffusers_folder,
        load_checkpoint,
        (
            "core.diffusers.checkpoint.load_checkpoint",
            "core.models.model_folder.load_diffusers",
            "core.models.model_folder.load_scheduler",
            "core.models.model_folder.load_text_encoder",
            "core.models.model_folder.read_index",
        ),
        slow=True,
    ),
    "single file": Sample(_single_file, load_single_file, ("core.diffusers.single_file.load_single_file",), slow=True),
    "aMUSEd folder": Sample(_token_folder, load_token_model, ("core.regions.edit_tokens.load_token_model",), slow=True),
    "demo model": Sample(
        _demo_folder, lambda path: load_demo_model(path).unet, ("core.demo.model.load_demo_model",), slow=True
    ),
    "ELITE mapper": Sample(_elite_mapper, load_elite_mapper, ("core.elite.mapper.load_elite_mapper",)),
    "distilled edit": Sample(_distilled_edit, load_editor, ("core.distillation.files.load_editor",)),
    "distillation training": Sample(
        _distillation,
        lambda path: resume_network_training(_distilled_trainer(), path) or True,
        ("core.training.resume_training",),
    ),
    "folders of pairs": Sample(
        _pair_folders,
        lambda path: read_pairs(path, path.with_name("after"), 8),
        ("core.distillation.pairs.read_pairs",),
    ),
    "delta mapper": Sample(_mapper, load_mapper, ("core.deltaedit.mapper_files.load_mapper",)),
    "published delta mapper": Sample(_published_mapper, load_mapper, (), slow=True),
    "relevance matrix": Sample(
        lambda folder: save_relevance(folder / "a.safetensors", Relevance(_random(12, 6), COVARIANCE)),
        load_relevance,
        ("core.deltaedit.mapper_files.load_relevance",),
    ),
    "relevance matrix in a mapper": Sample(_mapper, load_relevance, ()),
    "relevance matrix as an array": Sample(_array, load_relevance, ("core.reading.arrays.read_array",)),
    "PNG": Sample(_picture(".png"), read_picture, ("core.images.files.read_picture",)),
    "JPEG": Sample(_picture(".jpg"), read_picture, ()),
    "WebP": Sample(_picture(".webp"), read_whole_picture, ("core.images.files.read_whole_picture",)),
    "TIFF": Sample(_picture(".tif"), read_picture, ()),
    "GIF": Sample(_picture(".gif"), read_picture, ()),
    "folder of pictures": Sample(
        _picture_folder,
        lambda path: square_pictures(path, 16),
        ("core.images.files.read_folder", "core.images.files.square_pictures"),
    ),
    "folder of pictures with captions": Sample(
        _captioned_folder,
        lambda path: read_captions(path),
        ("core.images.captions.read_captions", "core.files.load_text"),
    ),
    "PIE-Bench": Sample(_pie_bench, read_pie_bench, ("core.metrics.pie_bench.read_pie_bench", "core.files.load_json")),
}
