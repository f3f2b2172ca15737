"""Region Search Settings: what of a box search is rarely changed, in a node of its own."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ...core.errors import EditingError
from ...core.regions.rewards import LossWeights
from ...core.regions.search import SearchSettings
from ...core.regions.settings import Strategy, StrategySettings
from ..host.schema import io, schema, widget

#: Socket that carries a :class:`SearchChoices`.
SearchSettingsType = io.Custom("SEMEDIT_REGION_SEARCH_SETTINGS")
KEEP, STOP = "use the best so far", "stop everything"
TIGHTEST = "tightest of the best"
WINNERS = {"best of each anchor": "anchors", "all": "all", TIGHTEST: "tightest"}
MASK_USES = ("restrict", "exclude")
#: What each loss weight counts.
LOSSES = {
    "clip_weight": "the edit looks like the target text",
    "direction_weight": "the image changes the way the texts do",
    "structure_weight": "the image keeps its structure",
}


@dataclass(frozen=True)
class SearchChoices:
    """The node's widgets; see their tooltips."""

    mask_use: str = MASK_USES[0]
    on_cancel: str = STOP
    aspect_ratios: str = "1"
    spread: int = 1
    winner: str = TIGHTEST
    refine: bool = True
    clip_weight: float = 1.0
    direction_weight: float = 1.0
    structure_weight: float = 1.0
    crops: int = 0

    def settings(self, anchors: int, sizes: str, strategy: Strategy, change_anchors: int, seed: int) -> SearchSettings:
        """The settings of a search by these and Region Box Generator's own widgets.

        Raises:
            EditingError: values that cannot be used.
        """
        if self.winner not in WINNERS:
            raise EditingError(f"There is no winner {self.winner!r}; use one of: {', '.join(WINNERS)}.")
        if self.mask_use not in MASK_USES:
            raise EditingError(f"There is no mask_use {self.mask_use!r}; use restrict or exclude.")
        return SearchSettings(
            anchors=anchors,
            sizes=numbers_in(sizes, "sizes"),
            aspects=numbers_in(self.aspect_ratios, "aspect_ratios"),
            spread=self.spread,
            mask_use="exclude" if self.mask_use == "exclude" else "restrict",
            weights=LossWeights(self.clip_weight, self.direction_weight, self.structure_weight),
            crops=self.crops,
            strategy=StrategySettings(strategy, choice=WINNERS[self.winner], refine=self.refine, seed=seed),
            changes=change_anchors,
        )


def numbers_in(text: str, name: str) -> tuple[float, ...]:
    """The numbers of a text such as "0.3, 0.5".

    Raises:
        EditingError: something else is in it.
    """
    try:
        return tuple(float(part) for part in text.replace(",", " ").replace(";", " ").split())
    except ValueError as error:
        raise EditingError(
            f"{name} is {text!r}; write numbers separated by commas, for example 0.3, 0.5, 0.8."
        ) from error


class RegionSearchSettings(io.ComfyNode):
    """All of a box search that Region Box Generator itself does not ask for."""

    @classmethod
    def define_schema(cls) -> Any:
        """Widgets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        given = SearchChoices()
        return schema(
            node_id="SemEdit_RegionSearchSettings",
            display_name="Region Search Settings",
            category="semantic editing/regions",
            description="Changes how Region Box Generator searches and judges. Leave it out for the settings that the "
            "tables were measured with.",
            search_aliases=["region settings", "learnable regions settings", "box search options"],
            inputs=[
                widget(
                    io.Combo,
                    "mask_use",
                    options=list(MASK_USES),
                    default=given.mask_use,
                    tooltip="What a wired mask means. Restrict: edits stay inside it (white). Exclude: they stay out "
                    "of it.",
                ),
                widget(
                    io.Combo,
                    "on_cancel",
                    options=[STOP, KEEP],
                    default=given.on_cancel,
                    tooltip="What Cancel does here. Stop everything: the run ends. Use the best so far: the graph goes "
                    "on with what the search found; press again to stop everything. Either way renders are kept, and "
                    "the next run goes on where this one was.",
                ),
                widget(
                    io.String,
                    "aspect_ratios",
                    default=given.aspect_ratios,
                    tooltip="Width over height of the boxes: 1 is square, 2 wide, 0.5 tall. Each multiplies the number "
                    "of boxes.",
                ),
                widget(
                    io.Int,
                    "spread",
                    default=given.spread,
                    min=0,
                    max=64,
                    tooltip="Places are more than so many patches apart, so that they do not crowd on one spot. 0: no "
                    "limit, as in the paper.",
                ),
                widget(
                    io.Combo,
                    "winner",
                    options=list(WINNERS),
                    default=given.winner,
                    tooltip="Who may be first. Best of each anchor: the box of lowest loss of each place, as in the "
                    "paper. All: every rendered box, by score alone. Tightest of the best: where it is known where the "
                    "text acts (Region Inversion Editor), a box's share of the best gain in score, how well it frames "
                    "that place and how much of what it changed lies there decide; else the smallest of those that "
                    "score about as well as the best.",
                ),
                widget(
                    io.Boolean,
                    "refine",
                    default=given.refine,
                    tooltip="In the end move the sides of the best box while that makes it better, for one more "
                    "render. Only with Region Inversion Editor (screening_steps 0), change_anchors and the winner "
                    "tightest of the best; others pay nothing.",
                ),
                *(
                    widget(
                        io.Float,
                        name,
                        default=1.0,
                        min=0.0,
                        max=100.0,
                        step=0.1,
                        tooltip=f"How much it counts that {what}. 1 is the paper's, 0 is off.",
                    )
                    for name, what in LOSSES.items()
                ),
                widget(
                    io.Int,
                    "crops",
                    default=given.crops,
                    min=0,
                    max=64,
                    tooltip="Random crops that are judged besides the whole image, the same before and after the edit. "
                    "0 is enough for most.",
                ),
            ],
            outputs=[
                SearchSettingsType.Output(
                    "search_settings", display_name="settings", tooltip="Wire it into settings of Region Box Generator."
                )
            ],
        )

    @classmethod
    def execute(cls, **widgets: Any) -> Any:
        """The widgets as they are."""
        return io.NodeOutput(SearchChoices(**{field.name: widgets[field.name] for field in fields(SearchChoices)}))


NODES = [RegionSearchSettings]
