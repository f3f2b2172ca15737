"""Attribute Classifier from Texts: a CLIP that tells classes by what is written of them, alone or beside another
classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.classifiers.base import ImageClassifier
from ...core.classifiers.frozen_features import YES_NO, FeatureClassifier, attributes_in, classifier_from_texts, joined
from ...core.errors import EditingError
from ..common.reports import report_output, report_text, shown
from ..common.sockets import ClipScorerType
from ..host.feature_trunks import clip_trunk
from ..host.managed_models import ManagedClassifier, load_to_device, manage_classifier
from ..host.schema import io, schema, widget
from .classifier_loader import CATEGORY, AttributeClassifierType

NAME = "CLIP"
#: Pictures whose answers the report lists.
MOST_LISTED = 20


class AttributeClassifierFromTexts(io.ComfyNode):
    """Zero-shot classes of a CLIP as ATTRIBUTE_CLASSIFIER."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_AttributeClassifierFromTexts",
            display_name="Attribute Classifier from Texts",
            category=CATEGORY,
            description="Makes a classifier of a CLIP and a few texts, without training and without pictures: it picks "
            "the text that fits best. Or gives a classifier that you have further attributes, so that CASO can keep "
            "them as they are.",
            search_aliases=["zero-shot", "clip classifier", "text classifier", "attribute preservation", "caso"],
            inputs=[
                widget(
                    ClipScorerType,
                    "clip_scorer",
                    tooltip="From Load CLIP Scorer, or CLIP Scorer from CLIP and CLIP Vision.",
                ),
                widget(
                    io.String,
                    "attribute",
                    default="glasses",
                    tooltip="What the two texts are about; CASO asks for it by this name. Its classes are yes and no.",
                ),
                widget(
                    io.String,
                    "text_with",
                    default="a face with glasses",
                    tooltip="What a picture shows that has it (class yes). Empty: the others alone.",
                ),
                widget(
                    io.String,
                    "text_without",
                    default="a face",
                    tooltip="What a picture shows that has it not (class no). Leave words out rather than deny them: "
                    "CLIPs hardly understand 'no' and 'without'.",
                ),
                widget(
                    io.String,
                    "others",
                    default="expression: a smiling face | a serious face\nhair: blond hair | black hair | red hair",
                    multiline=True,
                    tooltip="Further attributes, one a line: a name, a colon, and two texts or more with | between "
                    "them. CASO's keep_others keeps them as they are; each text is a class that can be learned, too.",
                ),
                widget(
                    AttributeClassifierType,
                    "attribute_classifier",
                    optional=True,
                    tooltip="A classifier that gets these attributes besides its own. Empty text_with if it knows the "
                    "attribute already.",
                ),
                widget(
                    io.Image,
                    "images",
                    optional=True,
                    tooltip="Pictures on which to try it; the report says what it sees in each.",
                ),
            ],
            outputs=[
                AttributeClassifierType.Output(
                    "made_classifier",
                    display_name="classifier",
                    tooltip="The classifier; wire it into the CASO Embedding Trainer.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip_scorer: Any,
        attribute: str,
        text_with: str,
        text_without: str,
        others: str,
        attribute_classifier: ManagedClassifier | None = None,
        images: Tensor | None = None,
    ) -> Any:
        """Read the texts; EditingError for texts that cannot be told apart or lines of another form."""
        wanted = attributes_asked(attribute, text_with, text_without, others)
        trunk, handle = clip_trunk(clip_scorer)
        handles = [handle]

        def make() -> ImageClassifier:
            made: FeatureClassifier = classifier_from_texts(clip_scorer, wanted, NAME, trunk)
            return made if attribute_classifier is None else joined(attribute_classifier.classifier, made)

        if attribute_classifier is not None:
            handles += [other for other in attribute_classifier.patchers if other is not handle]
        managed = manage_classifier(make, *handles)
        report = report_text(managed.classifier.sentence(), managed.classifier.describe())
        if images is not None:
            load_to_device(*managed.patchers)
            report += f"\n{answers(managed.classifier, images)}"
        return io.NodeOutput(managed, report, ui=shown(report))


def attributes_asked(attribute: str, text_with: str, text_without: str, others: str) -> dict[str, dict[str, str]]:
    """Attribute -> class -> text.

    Raises:
        EditingError: nothing is written, half of it, or an attribute twice.
    """
    further = attributes_in(others)
    if not text_with.strip():
        if not further:
            raise EditingError("There are no texts; write what a picture with the attribute shows, or others.")
        return further
    if not attribute.strip() or not text_without.strip():
        raise EditingError(
            "The attribute or text_without is empty; write a name, and what a picture without the attribute shows."
        )
    if attribute.strip() in further:
        raise EditingError(f"{attribute.strip()[:60]} stands in others, too; write it in one place.")
    return {attribute.strip(): dict(zip(YES_NO, (text_without.strip(), text_with.strip()), strict=True))} | further


@torch.no_grad()
def answers(classifier: ImageClassifier, images: Tensor) -> str:
    """What a classifier sees in ``images [B, H, W, C]``, a line each."""
    logits = classifier.logits(images[:MOST_LISTED, ..., :3].movedim(-1, 1).float())
    lines = []
    for number in range(len(images[:MOST_LISTED])):
        seen = []
        for attribute, names in classifier.heads.items():
            chances = logits[attribute][number].float().softmax(0)
            best = int(chances.argmax())
            seen.append(f"{attribute} {names[best]} ({float(chances[best]):.0%})")
        lines.append(f"picture {number + 1}: {'; '.join(seen)}")
    left = len(images) - len(lines)
    return "\n".join([*lines, *([f"and {left} more"] if left else [])])


NODES = [AttributeClassifierFromTexts]
