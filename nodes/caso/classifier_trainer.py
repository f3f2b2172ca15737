"""Attribute Classifier Trainer: a classifier from folders of pictures, or from a batch with labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ...core.classifiers.base import ImageClassifier
from ...core.classifiers.frozen_features import FeatureClassifier, FeatureTrunk, JoinedClassifier
from ...core.classifiers.loaders import save_image_classifier
from ...core.classifiers.pictures import LabelledPictures, pictures_from_batch, pictures_from_folders
from ...core.classifiers.training import TrainedClassifier, TrainingSettings, train_classifier, training_size
from ...core.errors import EditingError
from ...core.writing import check_target
from ..common.inputs import seed_input
from ..common.reports import plot_output, report_output, report_text, shown
from ..common.saving import Saved, save_or_rescue
from ..common.sockets import ClipScorerType
from ..host.feature_trunks import clip_trunk
from ..host.folders import input_folder, output_path
from ..host.managed_models import load_to_device, manage_classifier, training_scope
from ..host.progress import StoppableBar, counting_bar
from ..host.schema import io, schema, widget
from .classifier_loader import CATEGORY, FOLDER, AttributeClassifierType, names_in
from .classifier_settings import ClassifierTrainingSettingsType, TrainingOptions

DEFAULTS = TrainingSettings(epochs=30)  # of somebody's own pictures, which are few


class AttributeClassifierTrainer(io.ComfyNode):
    """A classifier from folders of pictures, or from a batch with labels."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_AttributeClassifierTrainer",
            display_name="Attribute Classifier Trainer",
            category=CATEGORY,
            description="Trains a classifier from two or more folders of pictures (the folder's name is the class), "
            "or from a batch of images and their labels, and saves it. Part of the pictures is set aside to test it "
            "with.",
            search_aliases=[
                "train classifier",
                "fine-tune classifier",
                "image classification training",
                "caso classifier",
            ],
            inputs=[
                widget(
                    io.String,
                    "folders",
                    default="",
                    multiline=True,
                    tooltip="Folders inside ComfyUI's input folder, one a line: each is a class. A single one: its "
                    "sub-folders are the classes. Leave empty when images are wired.",
                ),
                widget(
                    io.String,
                    "attribute",
                    default=DEFAULTS.attribute,
                    tooltip="What the classes are values of, e.g. glasses; CASO asks for it by this name.",
                ),
                widget(
                    io.String,
                    "filename",
                    default="my_classifier",
                    tooltip="A plain name without folders; .safetensors is added.",
                ),
                widget(
                    io.Boolean,
                    "overwrite",
                    default=False,
                    tooltip="Replace a file of that name; a workflow that comes with this on does so without asking. "
                    "Off (the default): refuse when there is one, before training.",
                ),
                widget(
                    io.Int,
                    "epochs",
                    default=DEFAULTS.epochs,
                    min=1,
                    max=1000,
                    tooltip="Passes over the pictures. The best one is kept, so too many cost time only; 10 with a "
                    "backbone, 30 without or for the last layer alone.",
                ),
                seed_input("Which pictures are set aside, their order and the first weights."),
                widget(
                    io.Boolean,
                    "train_trunk",
                    default=DEFAULTS.train_trunk,
                    tooltip="With a backbone: train all of it. Off, and always over a CLIP: only its last layer, which "
                    "takes seconds and needs fewer pictures.",
                ),
                widget(
                    io.String,
                    "labels",
                    default="",
                    multiline=True,
                    tooltip="The class of every wired image, one a line or separated by commas, in the same order.",
                ),
                widget(
                    io.Image,
                    "images",
                    optional=True,
                    tooltip="Pictures to learn from, in place of folders; labels names their classes.",
                ),
                widget(
                    io.MultiType,
                    "backbone",
                    types=[AttributeClassifierType, ClipScorerType, io.ClipVision],
                    optional=True,
                    tooltip="A classifier to start from (its last layer is replaced), e.g. VGG16 from Attribute "
                    "Classifier Loader; or a CLIP Scorer or CLIP Vision, over which one layer is trained in seconds. "
                    "Unwired: a small network is trained from nothing.",
                ),
                widget(
                    ClassifierTrainingSettingsType,
                    "settings",
                    optional=True,
                    tooltip="All else, from Attribute Classifier Training Settings.",
                ),
            ],
            outputs=[
                AttributeClassifierType.Output(
                    "attribute_classifier",
                    display_name="classifier",
                    tooltip="The classifier of the best epoch; it is saved too.",
                ),
                io.Float.Output(
                    "accuracy",
                    display_name="accuracy",
                    tooltip="Part of right answers on the pictures set aside, from 0 to 1.",
                ),
                plot_output(),
                report_output(),
                io.String.Output(
                    "saved_file",
                    display_name="file",
                    tooltip="Name of the file, as Attribute Classifier Loader lists it.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        folders: str,
        attribute: str,
        filename: str,
        overwrite: bool,
        epochs: int,
        seed: int,
        train_trunk: bool,
        labels: str,
        images: Tensor | None = None,
        backbone: Any = None,
        settings: TrainingOptions | None = None,
    ) -> Any:
        """Train and save; Cancel saves the best epoch before it ends the run."""
        options = settings or TrainingOptions()
        chosen = TrainingSettings(
            attribute=attribute,
            epochs=epochs,
            patience=options.patience,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            validation=options.validation,
            augmentation=options.augmentation,
            flip=options.flip,
            train_trunk=train_trunk,
            seed=seed,
        )
        chosen.check()
        path = check_target(output_path(FOLDER, filename), overwrite=overwrite)
        start, handles = started_from(backbone)
        size = training_size(start, options.input_size)
        bar = StoppableBar()
        weights = (
            0 if start is None else sum(value.numel() * value.element_size() for value in start.state_dict().values())
        )
        with training_scope(weights) as device:
            if handles:
                load_to_device(*handles)
            pictures = gathered(folders, labels, images, size)
            trained = train_classifier(
                pictures, chosen, start, device=device, callback=lambda at: bar(at.step, at.steps)
            )

        def save(target: Path, replacing: bool) -> None:
            save_image_classifier(trained.classifier, target, trained.facts(), overwrite=replacing)

        saved = save_or_rescue(save, path, overwrite)
        if saved.file:
            bar.finish()  # else it would be lost, or nobody would hear where it went
        return cls.outputs(trained, saved, handles)

    @classmethod
    def outputs(cls, trained: TrainedClassifier, saved: Saved, handles: tuple[Any, ...] = ()) -> Any:
        """The node's outputs and what it shows; ``handles`` are of networks that the classifier computes with."""
        first = f"It is right about {trained.accuracy:.0%} of the pictures that it did not learn from."
        report = report_text(saved.first(first), saved.line, trained.report())
        plot = trained.plot()[None]
        managed = manage_classifier(lambda: trained.classifier, *handles)
        return io.NodeOutput(managed, trained.accuracy, plot, report, saved.file, ui=shown(report, plot, cls))


def started_from(backbone: Any) -> tuple[ImageClassifier | FeatureTrunk | None, tuple[Any, ...]]:
    """``(what a training begins with, the handles of networks that it must find loaded)``.

    Args:
        backbone: None, an ATTRIBUTE_CLASSIFIER, a CLIP_SCORER or a CLIP_VISION.
    """
    if backbone is None:
        return None, ()
    start = getattr(backbone, "classifier", None)
    if start is None:
        trunk, handle = clip_trunk(backbone)
        return trunk, (handle,)
    start = start.first if isinstance(start, JoinedClassifier) else start
    if isinstance(start, FeatureClassifier):
        return start.trunk, backbone.patchers[1:]
    return start, ()


def gathered(folders: str, labels: str, images: Tensor | None, size: tuple[int, int]) -> LabelledPictures:
    """The pictures of the folders named, or ``images [N, H, W, C]`` with their labels.

    Raises:
        EditingError: neither, both, or whatever is wrong with them.
    """
    named = [line.strip() for line in folders.splitlines() if line.strip()]
    if images is not None:
        if named:
            raise EditingError("Both folders and images are given; empty the folders or unwire the images.")
        return pictures_from_batch(images[..., :3].movedim(-1, 1).float(), names_in(labels), size)
    if not named:
        raise EditingError(
            "There is nothing to learn from; name two folders of pictures, or wire images and give their labels."
        )
    return pictures_from_folders([input_folder(name) for name in named], size, counting_bar())


NODES = [AttributeClassifierTrainer]
