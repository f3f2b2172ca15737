"""benchmarks/deltaedit_wordings.py: its wordings are as new as it says, and a strength is so much of an edit."""

import json

import pytest
import torch

from semantic_editing.benchmarks.deltaedit_quality import EDITS, STYLE, Faces
from semantic_editing.benchmarks.deltaedit_wordings import STRENGTHS, WORDINGS, edited, shipped_texts
from semantic_editing.core.deltaedit.generator_files import load_generator
from semantic_editing.core.deltaedit.mapper_files import load_mapper
from semantic_editing.core.deltaedit.style_code import blend
from semantic_editing.core.demo.data import FOLDER, TOKENIZER, DemoData
from semantic_editing.core.models.model_folder import load_clip_tokenizer

NEW = "words that the demo's CLIP never saw"


@pytest.mark.parametrize("name", WORDINGS)
def test_the_demos_clip_knows_all_words_of_a_wording_or_not_what_it_asks_for(name):
    tokenizer = load_clip_tokenizer(TOKENIZER, "clip_tokenizer")
    known = set(json.loads((FOLDER / "vocab.json").read_text(encoding="utf-8")))
    assert set(WORDINGS[name]) == set(EDITS)
    for source, target in WORDINGS[name].values():
        unknown = set(tokenizer(target).input_ids) - known - set(tokenizer(source).input_ids)
        assert bool(unknown) == (name == NEW) and source != target


def test_the_shipped_texts_are_those_of_the_workflows():
    workflows = FOLDER.parents[1] / "workflows" / "api"
    data = DemoData()
    for file, edit in (("demo_deltaedit_text", EDITS[0]), ("demo_deltaedit_diffusion", EDITS[3])):
        nodes = json.loads((workflows / f"{file}.json").read_text(encoding="utf-8")).values()
        (mapper,) = (node["inputs"] for node in nodes if node["class_type"] == "SemEdit_DeltaEditMapper")
        assert shipped_texts(edit, data) == (mapper["source_text"], mapper["target_text"])


@pytest.mark.parametrize("strength", STRENGTHS[::2])
def test_a_strength_is_that_much_of_the_way_to_the_edit(strength):
    generator, mapper = load_generator(STYLE / "generator.safetensors"), load_mapper(STYLE / "mapper.safetensors")
    seeded = torch.Generator().manual_seed(0)
    with torch.no_grad():
        w = generator.map(torch.randn(2, generator.style_dim, generator=seeded))
        code = generator.styles(w[:, None].expand(-1, generator.layout.rows, -1))
        features, wanted = (
            torch.nn.functional.normalize(torch.randn(rows, mapper.clip_width, generator=seeded), dim=1)
            for rows in (2, 1)
        )
        of = Faces([], code, code, None, [], None, features, features, wanted, wanted)
        whole, part = edited(mapper, of, wanted), edited(mapper, of, wanted, strength)
    expected = blend(code, whole, [strength] * 3)
    assert torch.allclose(part.convs, expected.convs, atol=1e-5 * float(code.convs.abs().max()))
    assert torch.equal(part.rgbs, code.rgbs)
    assert torch.equal(part.convs, code.convs) == (strength == 0)
