"""What Settings nodes hand on, and what merged widgets stand for."""

import inspect
from types import SimpleNamespace

import pytest

from semantic_editing.tests.refusals import refusal
from semantic_editing.tools import host_stand_in

NODES = {node.define_schema().node_id: node for node in host_stand_in.load_pack().load_nodes()}
SETTINGS = [name for name, node in NODES.items() if node.define_schema().display_name.endswith(" Settings")]


def defaults(node):
    return {slot.id: slot.options["default"] for slot in node.define_schema().inputs if "default" in slot.options}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_settings_node_as_it_comes_is_the_same_as_none(name):
    """Its widgets' defaults are what a node does where the socket is not wired."""
    (handed_on,) = NODES[name].execute(**defaults(NODES[name])).args
    assert handed_on == type(handed_on)()
    (output,) = NODES[name].define_schema().outputs
    takers = [
        (node, slot.id) for node in NODES.values() for slot in node.define_schema().inputs if slot.type == output.type
    ]
    assert takers
    for node, socket in takers:
        unwired = inspect.signature(node.execute).parameters[socket].default
        assert unwired is None or unwired == handed_on, node


def window(start, end):
    edit_settings = host_stand_in.module("nodes.caso.guidance").edit_settings
    return edit_settings(3.0, "custom", start, end, True, 1.0).window


def test_an_end_that_is_the_start_guides_one_step():
    first, last = window(0.5, 0.5).levels(50)
    assert first == last == 25 and window(0.5, 0.5).single_step
    assert window(0.5, 0.1).levels(50) == (25, 6) and not window(0.5, 0.1).single_step
    assert window(1.0, 1.0).levels(50) == (50, 50)
    assert "The window goes from 0.4 to 0.5" in refusal(window, 0.4, 0.5)


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        ("gradient", ("gradient", "adamw")),
        ("gradient_descent", ("gradient", "gradient_descent")),
        ("ddim", ("ddim", "adamw")),
    ],
)
def test_the_papers_descent_is_a_solver(monkeypatch, solver, expected):
    module = host_stand_in.module("nodes.inversion.spdinv")
    seen = []
    monkeypatch.setattr(
        module, "invert_image", lambda cls, solve, settings, *rest, **more: seen.append((settings, more))
    )
    widgets = defaults(module.SPDInvInversion) | {"solver": solver, "learning_rate": 0.5}
    module.SPDInvInversion.execute(model=None, positive=None, latent={}, **widgets)
    ((settings, more),) = seen
    assert (settings.solver, settings.optimizer) == expected and settings.learning_rate == 0.5
    assert more["gradients"] == (expected[0] == "gradient")


def test_a_solver_that_there_is_not_is_refused():
    module = host_stand_in.module("nodes.inversion.spdinv")
    widgets = defaults(module.SPDInvInversion) | {"solver": "newton"}
    nothing = SimpleNamespace()
    assert "There is no solver 'newton'" in refusal(
        module.SPDInvInversion.execute, model=nothing, positive=nothing, latent={}, **widgets
    )


def test_the_released_engine_reads_no_other_setting(monkeypatch):
    module = host_stand_in.module("nodes.engines.prompt_to_prompt")
    options = host_stand_in.module("nodes.engines.settings").GuiderOptions
    seen = []
    monkeypatch.setattr(module, "engine_guider", lambda make, settings, **wired: seen.append(settings))
    widgets = {name: value for name, value in defaults(module.PromptToPromptGuider).items() if "_text" not in name}
    for changed in ({}, {"cfg": 1.0, "settings": options(False, 0.9, 0.9, 0.9)}):
        module.PromptToPromptGuider.execute(**(widgets | {"mode": "released_spdinv"} | changed))
        module.PromptToPromptGuider.execute(**(widgets | changed))
    assert seen[0] == seen[2] == module.released_spdinv() and seen[1] != seen[3]
    assert (seen[3].cfg, seen[3].stored_shift, seen[3].proximal, seen[3].background_keep) == (1.0, False, 0.9, 0.9)
    assert seen[3].blend_threshold == 0.9
