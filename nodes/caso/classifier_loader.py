"""Attribute Classifier Loader: any supported classifier file as an ATTRIBUTE_CLASSIFIER."""

from __future__ import annotations

from typing import Any

from ...core.classifiers.loaders import AUTO, load_image_classifier
from ...core.models.transformers_files import NORMALISATIONS
from ..common.bundled import bundled, bundled_file, bundled_names
from ..common.reports import file_fingerprint, report_output, report_text, shown
from ..common.sockets import ClipScorerType
from ..host.feature_trunks import clip_trunk
from ..host.folders import list_files, resolve_file
from ..host.managed_models import manage_classifier
from ..host.schema import io, schema, widget

#: Socket carrying a :class:`~..host.managed_models.ManagedClassifier`.
AttributeClassifierType = io.Custom("ATTRIBUTE_CLASSIFIER")
CATEGORY = "semantic editing/classifier"
FOLDER = "attribute_classifiers"


def names_in(text: str) -> list[str]:
    """Names in a text, one a line or separated by commas."""
    return [name.strip() for line in text.splitlines() for name in line.split(",") if name.strip()]


class AttributeClassifierLoader(io.ComfyNode):
    """Any supported classifier file as an ATTRIBUTE_CLASSIFIER."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_AttributeClassifierLoader",
            display_name="Attribute Classifier Loader",
            category=CATEGORY,
            description="Loads a classifier that tells CASO whether an attribute is there: one trained by this pack, a "
            "VGG, ResNet or ConvNeXt of torchvision (.pth or safetensors), a transformers or timm image classifier, a "
            "published CASO classifier, or the demo's. No code in a file is run.",
            search_aliases=[
                "image classifier",
                "load classifier",
                "caso classifier",
                "vgg16",
                "resnet50",
                "convnext",
                "vit",
                "timm",
            ],
            inputs=[
                widget(
                    io.Combo,
                    "classifier_file",
                    options=[*bundled_names(FOLDER), *list_files(FOLDER)],
                    default="demo",
                    tooltip="A file of ComfyUI's models/attribute_classifiers folder, or the demo's. Of a "
                    "transformers or timm folder choose its model.safetensors. Press R after adding one.",
                ),
                widget(
                    io.String,
                    "attribute",
                    default="",
                    advanced=True,
                    tooltip="What the classes are values of, e.g. glasses. Empty: the file's own name for it.",
                ),
                widget(
                    io.String,
                    "class_names",
                    default="",
                    advanced=True,
                    tooltip="Names of the classes in the order of the classifier's outputs, separated by commas. "
                    "Empty: the file's own; a classifier of one output has the classes no, yes.",
                ),
                widget(
                    io.Int,
                    "input_size",
                    default=0,
                    min=0,
                    max=2048,
                    advanced=True,
                    tooltip="Pixels of the square picture that the classifier sees. 0: the file's own, or the usual "
                    "of its kind (224; 512 for published CASO classifiers).",
                ),
                widget(
                    io.Combo,
                    "normalisation",
                    options=[AUTO, *NORMALISATIONS],
                    default=AUTO,
                    advanced=True,
                    tooltip="What the classifier wants pixel values to be. auto: the file's own, or the usual of its "
                    "kind.",
                ),
                widget(
                    io.MultiType,
                    "backbone",
                    types=[ClipScorerType, io.ClipVision],
                    optional=True,
                    tooltip="Only for a file that Attribute Classifier Trainer made over a CLIP: the same CLIP Scorer "
                    "or CLIP Vision again.",
                ),
            ],
            outputs=[
                AttributeClassifierType.Output(
                    "attribute_classifier",
                    display_name="classifier",
                    tooltip="The classifier; wire it into the CASO Embedding Trainer, or as backbone into Attribute "
                    "Classifier Trainer.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        classifier_file: str,
        attribute: str = "",
        class_names: str = "",
        input_size: int = 0,
        normalisation: str = AUTO,
        backbone: Any = None,
    ) -> str:
        """Size and time of the file, so that a file saved anew is read anew."""
        return classifier_file if bundled(FOLDER, classifier_file) else file_fingerprint(FOLDER, classifier_file)

    @classmethod
    def execute(
        cls,
        classifier_file: str,
        attribute: str,
        class_names: str,
        input_size: int,
        normalisation: str,
        backbone: Any = None,
    ) -> Any:
        """Read; EditingError for a damaged, hostile or foreign file."""
        path = bundled_file(FOLDER, classifier_file) or resolve_file(FOLDER, classifier_file)
        trunk, *handles = (None,) if backbone is None else clip_trunk(backbone)
        managed = manage_classifier(
            lambda: load_image_classifier(
                path,
                classes=names_in(class_names),
                size=input_size,
                normalisation=normalisation,
                attribute=attribute.strip(),
                backbone=trunk,
            ),
            *handles,
        )
        report = report_text(managed.classifier.sentence(), f"{classifier_file}: {managed.classifier.describe()}")
        return io.NodeOutput(managed, report, ui=shown(report))


NODES = [AttributeClassifierLoader]
