"""The one exception a person reads: a single sentence that says what is wrong and what to do."""


class EditingError(ValueError):
    """Input that cannot be used as given. The message is one sentence and names the remedy."""
