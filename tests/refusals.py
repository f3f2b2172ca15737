"""What a person is told when something cannot be done."""

import pytest


def refusal(function, *args, **options):
    """The one sentence with which ``function`` refuses: an EditingError, be it of the pack or of its second copy, which
    runs under the stand-in host."""
    with pytest.raises(ValueError) as caught:
        function(*args, **options)
    assert type(caught.value).__name__ == "EditingError", repr(caught.value)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence, sentence
    return sentence
