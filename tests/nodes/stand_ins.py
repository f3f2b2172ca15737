"""What tests of several rooms of nodes put in the place of the host's bars, scopes and networks."""

from contextlib import contextmanager, nullcontext

import torch

from semantic_editing.tools import host_stand_in

host_stand_in.load_pack()
EditingError = host_stand_in.module("core.errors").EditingError


class Cancelled(Exception):
    """What the host raises when Cancel was pressed."""


class Bar:
    """A StoppableBar; Cancel is pressed once, when ``press_at`` is shown as done. Use a subclass: both are its own."""

    press_at = None
    shown = ()  # (done, total, picture) of the bar that was made last

    def __init__(self):
        self.cancelled = None
        type(self).shown = []

    def show(self, done, total, picture=None, text=""):
        self.shown.append((done, total, picture))
        if done == self.press_at:
            type(self).press_at = None
            raise Cancelled

    @contextmanager
    def catching(self):
        try:
            yield
        except Cancelled as pressed:
            self.cancelled = pressed

    def finish(self):
        if self.cancelled is not None:
            raise self.cancelled


def on_settings(choices, given):
    """``given`` with those widgets that stand on a technique's settings node as what that node hands on.

    Args:
        choices: the dataclass that it hands on.
    """
    own = {name: value for name, value in given.items() if name in choices.__dataclass_fields__}
    return {name: value for name, value in given.items() if name not in own} | {"settings": choices(**own)}


class Held:
    """A ``Managed`` network."""

    device = torch.device("cpu")

    def __init__(self, network):
        self.network = network

    def loaded(self):
        return self.network


@contextmanager
def training_scope(weights, advice=""):
    with torch.inference_mode(False), torch.enable_grad():
        yield torch.device("cpu")


def stand_in(monkeypatch, folder, *modules):
    """Put these in ``modules`` of nodes for what they import, with the host's folders below ``folder``; the bar."""
    places = {
        "StoppableBar": type("Pressed", (Bar,), {}),
        "training_scope": training_scope,
        "memory_advice": lambda advice: nullcontext(),
        "counting_bar": lambda: lambda done, total: None,
        "input_folder": lambda name: folder / name,
        "output_path": lambda kind, name, ending=".safetensors": folder / kind / f"{name.removesuffix(ending)}{ending}",
        "resolve_file": lambda kind, name: folder / kind / name,
    }
    for module in modules:
        for name, value in places.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
        if hasattr(module, "Managed"):
            monkeypatch.setattr(module.Managed, "make", staticmethod(lambda make: Held(make())))
    saving = host_stand_in.module("nodes.common.saving")
    monkeypatch.setattr(saving, "rescue_folders", lambda: [("the output folder", folder / "output")])
    return places["StoppableBar"]


def same(made, other):
    """Whether two networks have the same weights, to the bit."""
    return all(torch.equal(value, other.state_dict()[name]) for name, value in made.state_dict().items())
