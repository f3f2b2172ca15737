"""What a person reads when something is wrong: a single sentence that says what, and what to do."""


class EditingError(ValueError):
    """Input that cannot be used as given. The message is one sentence and names the remedy."""

    # ComfyUI puts the class's module path before its name, in the box that a person reads when a node fails. Of a
    # builtin it shows the name alone: "EditingError: <sentence>".
    __module__ = "builtins"


class CutTextWarning(UserWarning):
    """A text is longer than a text encoder reads. The message is one sentence."""
