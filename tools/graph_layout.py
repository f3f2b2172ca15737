"""Where the nodes of a workflow lie: in columns, or in three coloured groups no wider than :data:`WIDEST`."""

from __future__ import annotations

from typing import Any

from graph_parts import Box, Node, is_widget, specifications

#: Pixels of a workflow with three groups, and of its pieces. The hosts open a workflow so that it takes three quarters
#: of the window: at 1440 x 900 text is drawn (a zoom of 0.7 and more) up to this width and height.
WIDEST, TALLEST = 1300, 900
LEFT, MIDDLE, RIGHT, PAD, BETWEEN, GAP = 250, 310, 636, 14, 10, 16
PICTURES_IN_A_ROW, PICTURE_GAP, SHORT_TEXT = 3, 12, 84
GROUPS = (("1 your picture", "#3f789e"), ("2 your words", "#8a6d3b"), ("3 result", "#4f8a4f"))
#: What stays outside a closed part: where pictures and models come from, and what a person looks at.
OPEN_NODES = {
    "CheckpointLoaderSimple",
    "LoadImage",
    "SemEdit_LoadDemoModel",
    "SemEdit_LoadDemoImage",
    "PreviewImage",
    "SaveImage",
    "PreviewAny",
    "SemEdit_EditReport",
    "MarkdownNote",
}
RESULTS = {"PreviewImage", "SaveImage", "PreviewAny", "SemEdit_EditReport"}
COLUMN_GAP, ROW_GAP, TITLE, SLOT, WIDGET = 60, 60, 30, 20, 26
TEXT_HEIGHT, PICTURE_HEIGHT = 130, 260
#: Nodes that show a picture under their widgets.
PICTURE_NODES = {
    "PreviewImage",
    "SaveImage",
    "LoadImage",
    "SemEdit_SPDInvInversion",
    "SemEdit_AutocorrDDIMInversion",
    "SemEdit_CASOEmbeddingTrainer",
    "SemEdit_RegionBoxGenerator",
    "SemEdit_RegionNetworkTrainer",
    "SemEdit_EditReport",
    "SemEdit_InvertToStyleCode",
    "SemEdit_DeltaEditMapper",
    "SemEdit_StyleDiffusionDecode",
    "SemEdit_DistilEditTrainer",
    "SemEdit_DistilledEdit",
}


def natural_height(kind: str, definition: dict[str, Any]) -> int:
    """The height in pixels of a node as the UI makes it, with room for the picture that it may show."""
    sockets = widgets = texts = 0
    for wanted, options in specifications(definition).values():
        if not is_widget(wanted, options):
            sockets += 1
        elif options.get("multiline"):
            texts += 1
        else:
            widgets += 1 + bool(options.get("control_after_generate"))
    picture = PICTURE_HEIGHT if kind in PICTURE_NODES else 0
    return max(sockets, len(definition["output"])) * SLOT + widgets * WIDGET + texts * TEXT_HEIGHT + picture + 16


def in_columns(nodes: list[Node]) -> dict[int, tuple[int, int]]:
    """Node id -> (left, top): the nodes of a column under each other, its columns from left to right."""
    columns = sorted({node.column for node in nodes})
    left = 0
    placed = {}
    for column in columns:
        members = [node for node in nodes if node.column == column]
        top = 0
        for node in members:
            placed[node.id] = (left, top)
            top += node.height + TITLE + ROW_GAP - 20
        left += max(node.width for node in members) + COLUMN_GAP
    return placed


def three_groups(
    nodes: list[Node], box: Box | None
) -> tuple[dict[int, tuple[int, int]], dict[int, tuple[int, int]], list[dict[str, Any]]]:
    """Positions and sizes of what is open and of the closed ``box``, and the three groups round them."""
    positions: dict[int, tuple[int, int]] = {}
    sizes: dict[int, tuple[int, int]] = {}

    def place(number: int, left: int, top: int, width: int, height: int) -> int:
        positions[number], sizes[number] = (left, top + TITLE), (width, height)
        return top + TITLE + height + GAP

    def stack(members: list[tuple[int, int]], left: int, top: int, width: int) -> int:
        for number, height in members:
            top = place(number, left, top, width, height)
        return top

    words, right = LEFT + 2 * PAD + BETWEEN, LEFT + MIDDLE + 4 * PAD + 2 * BETWEEN
    results = [node for node in nodes if node.type in RESULTS]
    first = [node for node in nodes if node not in results and node.type in OPEN_NODES and node.note is None]
    notes = [node for node in nodes if node.note is not None]
    second = [node for node in nodes if node not in results + first + notes]
    bottoms = [stack([(node.id, node.height) for node in first + notes], 0, 0, LEFT)]
    members = [(node.id, _short_height(node)) for node in second]
    if box is not None:
        members.append((box.id, _box_height(box)))
    bottoms.append(stack(members, words, 0, MIDDLE))

    pictures = [node for node in results if node.type in ("SaveImage", "PreviewImage")]
    # What came out stands beside what went in, in that order.
    pictures.sort(key=lambda node: {"Original": 0, "Edited image": 1, "Rebuilt image": 1}.get(node.title, 2))
    reported = any(node.type == "SemEdit_EditReport" for node in results)
    a_row = PICTURES_IN_A_ROW if len(pictures) != 4 else 2
    one_row = len(pictures) <= a_row
    tall = (290 if one_row else 200) if reported else (380 if one_row else 360)
    top = 0
    for start in range(0, len(pictures), a_row):
        row = pictures[start : start + a_row]
        width = (RIGHT - PICTURE_GAP * (min(a_row, len(pictures)) - 1)) // min(a_row, len(pictures))
        for column, node in enumerate(row):
            below = place(node.id, right + column * (width + PICTURE_GAP), top, width, tall)
        top = below
    for node in results:
        if node.type == "SemEdit_EditReport":
            top = place(node.id, right, top, RIGHT, 430 if one_row else 300)
    texts = [node for node in results if node.type == "PreviewAny"]
    for number, node in enumerate(texts):
        # Folded to its title: the figures are for those who ask. Opened, it has room to the right and below.
        place(node.id, right + number * (RIGHT // 3), top, max(node.width, 680), node.height)
    bottoms.append(top + (TITLE + GAP if texts else 0))
    groups = []
    for number, ((title, color), left, width) in enumerate(
        zip(GROUPS, (0, words, right), (LEFT, MIDDLE, RIGHT), strict=True)
    ):
        bounding = [left - PAD, -54, width + 2 * PAD, bottoms[number] + 54]
        groups.append(
            {"id": number + 1, "title": title, "bounding": bounding, "color": color, "font_size": 22, "flags": {}}
        )
    return positions, sizes, groups


def _short_height(node: Node) -> int:
    """The height of an open node whose texts are short."""
    texts = sum(bool(options.get("multiline")) for _, options in specifications(node.definition).values())
    return node.height - texts * (TEXT_HEIGHT - SHORT_TEXT)


def _box_height(box: Box) -> int:
    height = max(len(box.sources), len(box.results)) * SLOT + 16 + SHORT_TEXT * len(box.texts)
    for node, widget, _ in box.promoted:
        _, options = specifications(node.definition)[widget]
        height += SHORT_TEXT if options.get("multiline") else WIDGET
    return height
