"""The inputs of CASO Embedding Trainer, and the settings that their values are."""

from __future__ import annotations

from typing import Any

from ..core.caso.seams import MAX_TOKENS
from ..core.caso.settings import LEVELS, TrainingSettings
from ..core.classifiers.base import ImageClassifier
from ..core.errors import EditingError
from .classifiers import names_in
from .host import AttributeClassifierType, io, widget
from .inputs import seed_input

DEFAULTS = TrainingSettings("attribute", ("class",))


def trainer_inputs() -> list[Any]:
    """Sockets and widgets in their order; widgets are saved by position in workflows, so new ones go to the end."""
    return [
        widget(io.Model, "model", tooltip="The model to learn for: SD 1.x, SD 2.x, SDXL or the demo model. It is not changed."),
        widget(io.Clip, "clip", tooltip="Its text encoder, which reads the embedding."),
        widget(io.Vae, "vae", tooltip="Its VAE."),
        widget(
            AttributeClassifierType,
            "attribute_classifier",
            tooltip="What judges whether the attribute is there, from Attribute Classifier Loader or Trainer.",
        ),
        widget(
            io.String,
            "attribute",
            default="",
            tooltip="Which attribute of the classifier, e.g. glasses. Empty: its only one.",
        ),
        widget(
            io.String,
            "targets",
            default="yes",
            tooltip="The class to learn, by the classifier's name for it. Several, separated by commas, are learned at once and saved "
            "under their names.",
        ),
        widget(
            io.String,
            "folder",
            default="",
            tooltip="A folder of pictures inside ComfyUI's input folder. Leave empty when images are wired.",
        ),
        widget(
            io.String, "filename", default="my_attribute", tooltip="A plain name without folders; embedding:name then works in prompts."
        ),
        widget(
            io.Boolean,
            "overwrite",
            default=False,
            tooltip="Replace an embedding of that name. Off (the default): refuse when there is one, before training.",
        ),
        widget(
            io.Int,
            "steps",
            default=DEFAULTS.steps,
            min=1,
            max=100_000,
            tooltip="Steps of learning. 100 to 300 is usual; the best look at the held-out pictures is kept.",
        ),
        widget(io.Int, "batch_size", default=DEFAULTS.batch, min=1, max=64, tooltip="Pictures in one step. Lower it when memory runs out."),
        widget(
            io.Float,
            "noise_level",
            default=DEFAULTS.level,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip=f"Noise the pictures get, as a fraction of the steps: {LEVELS['faces']:g} for faces, {LEVELS['others']:g} for others.",
        ),
        seed_input("Of everything random: noise, order, augmentation."),
        widget(
            io.Boolean,
            "resume",
            default=False,
            tooltip="Go on where a training of this name and these settings stopped; it ends as if it never had. steps may be raised.",
        ),
        widget(
            io.Int,
            "image_size",
            default=512,
            min=8,
            max=2048,
            step=8,
            tooltip="Side in pixels to which a folder's pictures are scaled and cut: 512 for SD, 1024 for SDXL, 128 for the demo model. "
            "Wired images keep their size.",
        ),
        widget(
            io.Int,
            "held_out",
            default=24,
            min=0,
            max=64,
            advanced=True,
            tooltip="Pictures, the first ones but at most a quarter, that are not learned from; they decide what is best, and eight are "
            "shown. 0: none.",
        ),
        widget(
            io.Float,
            "learning_rate",
            default=DEFAULTS.learning_rate,
            min=0.0001,
            max=10.0,
            step=0.001,
            advanced=True,
            tooltip="Of AdamW, in units of the token table. Lower it when the loss jumps.",
        ),
        widget(
            io.Float,
            "cfg",
            default=DEFAULTS.cfg,
            min=0.1,
            max=100.0,
            step=0.1,
            advanced=True,
            tooltip="Guidance scale while learning; 10 is the paper's.",
        ),
        widget(
            io.Float,
            "reconstruction",
            default=DEFAULTS.reconstruction,
            min=0.0,
            max=100.0,
            step=0.1,
            advanced=True,
            tooltip="How much the rest of the picture counts (gamma). 0 is off, 1 to 10 usual; higher changes less besides the attribute.",
        ),
        widget(
            io.Float,
            "band",
            default=DEFAULTS.band,
            min=0.0,
            max=0.99,
            step=0.01,
            advanced=True,
            tooltip="Draw the noise level from this far around noise_level. 0 is off, 0.1 a good spread.",
        ),
        widget(
            io.Int,
            "tokens",
            default=DEFAULTS.tokens,
            min=1,
            max=MAX_TOKENS,
            advanced=True,
            tooltip="Token vectors of an embedding. 1 is the paper's; more can say more and learn slower.",
        ),
        widget(
            io.Int,
            "bank",
            default=DEFAULTS.bank,
            min=0,
            max=1000,
            advanced=True,
            tooltip="Noises for each picture that come again, so that half of the evaluations are kept from earlier. 0: always new ones.",
        ),
        widget(
            io.Float,
            "augmentation",
            default=DEFAULTS.augment,
            min=0.0,
            max=3.0,
            step=0.1,
            advanced=True,
            tooltip="How much pictures are shifted, zoomed and made noisy before the classifier, against patterns that fool it. 0 is off.",
        ),
        widget(
            io.Boolean,
            "flip",
            default=DEFAULTS.flip,
            advanced=True,
            tooltip="Mirror half of the pictures before the classifier. Switch it off for classes that tell left from right.",
        ),
        widget(
            io.Int,
            "check_every",
            default=DEFAULTS.check_every,
            min=0,
            max=10_000,
            advanced=True,
            tooltip="Steps between looks at the held-out pictures (preview, curves, saved state). 0: at the end only.",
        ),
        widget(
            io.Boolean,
            "checkpointing",
            default=True,
            advanced=True,
            tooltip="Compute parts of model and VAE again instead of keeping them: several times less memory, somewhat slower. "
            "The result is the same.",
        ),
        widget(
            io.Float,
            "keep_others",
            default=DEFAULTS.keep_others,
            min=0.0,
            max=100.0,
            step=0.1,
            advanced=True,
            tooltip="How much it counts that the classifier's other attributes stay as they are. 0 is the paper's loss; 1 changes less "
            "besides, but holds fine attributes such as a smile back. A classifier of one attribute has no others.",
        ),
        widget(
            io.String,
            "start_words",
            default="",
            optional=True,  # API prompts saved before it was there run on
            advanced=True,
            tooltip="A word for what changes, not for how: hair to learn red hair. Learning starts from it, and tokens before it start "
            "neutral, so give tokens one more than the words. Colors need it. Empty: from nothing, as in the paper.",
        ),
        widget(
            io.Image, "images", optional=True, tooltip="Pictures to learn from, in place of a folder; 100 to 200 of the kind to be edited."
        ),
        widget(
            io.Vae,
            "draft_vae",
            optional=True,
            tooltip="A small VAE (TAESD) that decodes all but the last fifth of the steps, to save time and memory.",
        ),
    ]


def training_settings(
    classifier: ImageClassifier, attribute: str, targets: str, batch_size: int, noise_level: float, augmentation: float, **same: Any
) -> TrainingSettings:
    """The widgets' values as settings; ``same`` are those of the same name there.

    Raises:
        EditingError: no such attribute or class, or a value out of range.
    """
    settings = TrainingSettings(
        known_attribute(classifier.heads, attribute), tuple(names_in(targets)), batch=batch_size, level=noise_level, augment=augmentation,
        **same,
    )  # fmt: skip
    for target in settings.targets:
        classifier.class_index(settings.attribute, target)
    return settings


def known_attribute(heads: Any, attribute: str) -> str:
    """The attribute asked for, or the only one of the classifier when the widget is empty.

    Raises:
        EditingError: empty, and there are several.
    """
    if not attribute.strip() and len(heads) > 1:
        raise EditingError(f"The classifier knows several attributes; write one of them into attribute: {', '.join(heads)}.")
    return attribute.strip() or next(iter(heads))
