"""ELITE Concept: the thing in a picture as a word, with the projections by which the model reads it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...core.elite.mapper import LAYERS, load_elite_mapper
from ..common.inputs import file_input
from ..common.reports import file_fingerprint
from ..host.concepts import encoded_with_word, layer_tokens, with_projections
from ..host.folders import ELITE_MAPPERS, resolve_file
from ..host.schema import io, schema, widget


class EliteConcept(io.ComfyNode):
    """ELITE (https://arxiv.org/abs/2302.13848), its global mapper."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_EliteConcept",
            display_name="ELITE Concept",
            category="semantic editing/loaders",
            description="Makes a word of the thing in one picture, without training: ELITE's global mapper, with the "
            "key and value projections that were trained with it. For SD 1.x.",
            search_aliases=[
                "my own object",
                "put an object in",
                "ELITE",
                "global mapper",
                "customised concept",
                "subject",
                "textual inversion from image",
            ],
            inputs=[
                widget(io.Model, "model", tooltip="An SD 1.x model (ELITE was trained on SD 1.4)."),
                widget(io.Clip, "clip", tooltip="The model's CLIP; it reads the text."),
                widget(io.ClipVision, "clip_vision", tooltip="CLIP ViT-L/14, from Load CLIP Vision."),
                widget(
                    io.Image,
                    "concept_image",
                    tooltip="The thing, large and alone in the picture; the first of a batch.",
                ),
                file_input("mapper_file", ELITE_MAPPERS),
                widget(
                    io.String,
                    "text",
                    default="a photo of a *",
                    multiline=True,
                    tooltip="The prompt; the concept stands where the * is, a word of its own. Give an engine the same "
                    "text as target_text.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "concept_model",
                    display_name="model",
                    tooltip="The model with the mapper's projections; sample with it. The image is inverted with the "
                    "plain model.",
                ),
                io.Conditioning.Output(
                    "conditioning", display_name="conditioning", tooltip="The text, for target of an engine."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, mapper_file: str, **rest: Any) -> str:
        """Size and time of the file, so that a file saved anew is read anew."""
        return file_fingerprint(ELITE_MAPPERS, mapper_file)

    @classmethod
    def execute(
        cls, model: Any, clip: Any, clip_vision: Any, concept_image: Tensor, mapper_file: str, text: str
    ) -> Any:
        """Map; EditingError for another kind of file, model, image tower or text."""
        mapper = load_elite_mapper(resolve_file(ELITE_MAPPERS, mapper_file))
        changed = with_projections(model, mapper.projections)
        word = mapper.words(layer_tokens(clip_vision, concept_image[:1], LAYERS))[0, 0]
        return io.NodeOutput(changed, encoded_with_word(clip, text, word))


NODES = [EliteConcept]
