"""What a vision model looks at in photos: the places where boxes would be tried, drawn over every picture of a folder.

For a look by eye at whether anchors fall on the objects; it measures nothing. Give a transformers folder of DINO or
DINOv2.

    python benchmarks/region_anchors.py --vision dino-vitb16 --photos photos --out anchors
"""

from __future__ import annotations

import argparse
from pathlib import Path

from semantic_editing.core.images.contact_sheet import to_picture
from semantic_editing.core.images.files import picture_files, read_picture
from semantic_editing.core.models.vision_features import load_vision_features
from semantic_editing.core.regions.picture import region_picture
from semantic_editing.core.regions.proposals import propose


def main() -> None:
    """Draw, and print where the anchors are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vision", type=Path, required=True, help="folder of a ViT, as for Load Vision Features")
    parser.add_argument("--photos", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--anchors", type=int, default=9)
    parser.add_argument("--spread", type=int, default=1)
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.3])
    parser.add_argument("--out", type=Path, default=Path("bench_out/anchors"))
    options = parser.parse_args()
    vision = load_vision_features(options.vision)
    options.out.mkdir(parents=True, exist_ok=True)
    for path in picture_files(options.photos):
        image, _ = read_picture(path, multiple=1)
        attention = vision(image).attention[0]
        proposals = propose(
            attention, (image.shape[-2], image.shape[-1]), options.anchors, options.sizes, spread=options.spread
        )
        boxes = [box for row in proposals.boxes for box in row if box is not None]
        drawn = region_picture(image, attention, boxes, 0)
        to_picture(drawn.movedim(-1, 0)).save(options.out / f"{path.stem}.png")
        print(f"{path.name}: " + ", ".join(f"({anchor.x:.0f}, {anchor.y:.0f})" for anchor in proposals.anchors))


if __name__ == "__main__":
    main()
