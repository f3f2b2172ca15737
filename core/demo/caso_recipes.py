"""How the demo's embeddings are learned and used: what its benchmark measures is what it ships and shows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..caso.settings import TrainingSettings

#: Half the width of the band of noise levels; a trajectory is guided at more levels than one.
BAND = 0.2


@dataclass(frozen=True)
class DemoRecipe:
    """One embedding of the demo model.

    Attributes:
        attribute, target: as the demo's classifier calls them.
        start_words: the word for what changes; "" where learning from nothing went better.
        level: noise level L; coarse things are decided earlier.
        start: of the window that edits are guided in, see :class:`~.editing.Window`.
        focus: share of the latent's elements that edits guide, see :class:`~.embedding.GuidanceTerm`; a mouth is small.
        strength: of an edit to show.
    """

    attribute: str
    target: str
    start_words: str
    level: float
    start: float
    focus: float
    strength: float

    def settings(self, **changes: Any) -> TrainingSettings:
        """Ours: the other attributes held, and a word to start from with a free vector before it, which needs less guidance."""
        base = self.paper(keep_others=1.0)
        if self.start_words:
            base = replace(base, tokens=2, start_words=self.start_words, cfg=3.0, learning_rate=0.03, steps=250)
        return replace(base, **changes)

    def paper(self, **changes: Any) -> TrainingSettings:
        """The paper's loss, guidance 10 and one neutral vector, 150 steps, at the same noise levels as ours."""
        return replace(TrainingSettings(self.attribute, (self.target,), level=self.level, band=BAND), **changes)


RECIPES = {
    "glasses": DemoRecipe("glasses", "glasses", "face", level=0.5, start=0.5, focus=0.1, strength=4.0),
    "smile": DemoRecipe("mouth", "smile", "mouth", level=0.4, start=0.5, focus=0.03, strength=4.0),
    "beard": DemoRecipe("facial_hair", "beard", "", level=0.5, start=0.5, focus=0.1, strength=7.0),
    "red hair": DemoRecipe("hair_color", "red", "hair", level=0.6, start=0.7, focus=0.1, strength=3.0),
}
