"""How the demo's embeddings are learned and used: what its benchmark measures is what it ships and shows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..caso.settings import TrainingSettings

#: Noise levels are drawn from this far around the recipe's, because an edit guides a trajectory at more levels than
#: one.
JITTER = 0.2


@dataclass(frozen=True)
class DemoRecipe:
    """One embedding of the demo model.

    Attributes:
        attribute, target: as the demo's classifier calls them.
        start_words: the word for what changes; "" where learning from nothing went better.
        noise_level: L, a fraction of the steps; coarse things are decided earlier.
        start: of the window that edits are guided in, see :class:`~..caso.editing.Window`.
        focus: share of the latent's elements that edits guide, see :class:`~..caso.embedding.GuidanceTerm`; a mouth is
            small.
        strength: of an edit to show.
    """

    attribute: str
    target: str
    start_words: str
    noise_level: float
    start: float
    focus: float
    strength: float

    def settings(self, **changes: Any) -> TrainingSettings:
        """Ours: other attributes count, and learning starts from a word after a free vector (needs less guidance)."""
        base = self.paper(attribute_preservation=1.0)
        if self.start_words:
            base = replace(base, tokens=2, start_words=self.start_words, cfg=3.0, learning_rate=0.03, steps=250)
        return replace(base, **changes)

    def paper(self, **changes: Any) -> TrainingSettings:
        """The paper's loss, guidance 10 and one neutral vector, 150 steps, at the same noise levels as ours."""
        base = TrainingSettings(self.attribute, (self.target,), noise_level=self.noise_level, noise_level_jitter=JITTER)
        return replace(base, **changes)


RECIPES = {
    "glasses": DemoRecipe("glasses", "glasses", "face", noise_level=0.5, start=0.5, focus=0.1, strength=4.0),
    "smile": DemoRecipe("mouth", "smile", "mouth", noise_level=0.4, start=0.5, focus=0.03, strength=4.0),
    "beard": DemoRecipe("facial_hair", "beard", "", noise_level=0.5, start=0.5, focus=0.1, strength=7.0),
    "red hair": DemoRecipe("hair_color", "red", "hair", noise_level=0.6, start=0.7, focus=0.1, strength=3.0),
}
