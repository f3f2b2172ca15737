"""Run the demo workflows on a running ComfyUI and compose workflows/previews/<name>.png; from that, square thumbnails
workflows/<name in the gallery>.jpg, also those of the Apps: before on the left, after on the right.

python tools/make_previews.py --server http://127.0.0.1:8188
python tools/make_previews.py --thumbnails     # only these, from the previews that there are
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
SIDE, MARGIN, HEAD = 256, 16, 34
THUMBNAIL = 400
PICTURES = ROOT / "web" / "docs" / "pictures"
#: Templates whose models are a person's own: their thumbnails show the photo to be edited, and no result made up.
OWN_MODEL = {
    "sd15_word_edit": "SD 1.5",
    "sdxl_word_edit": "SDXL",
    "sd15_caso_edit": "SD 1.5",
    "sd15_caso_train": "SD 1.5",
    "sd15_inpaint_region_edit": "SD 1.5 inpainting",
    "sd15_concept_edit": "SD 1.5 and your concept",
    "ffhq_deltaedit": "FFHQ",
}
#: Where the numbers of a preview's pictures are not those of the first and of the one called Edited image.
WHOLE = {"demo_caso_train": 0, "demo_caso_texts": 0, "demo_distil_train": 1}
INVERTED = ("Invert to Style Code", "The face, and the generator's copy")
EDITED = ("DeltaEdit Mapper", "As the generator draws it")
#: Workflow -> titles of the nodes whose pictures are shown, in order; with what is written above where it is not that.
SHOWN = {
    "demo_invert_reconstruct": ("Original", "Rebuilt image", "Residual and cost per step"),
    "demo_word_edit": ("Original", "Edited image", "True edited image (for comparison)"),
    "demo_pix2pix_zero": ("Original", "Edited image", "True edited image (for comparison)", "Noise before and after"),
    "demo_synthetic_edit": ("Original", "Edited image"),
    "demo_prompt_to_prompt": ("Original", "Edited image", "True edited image (for comparison)"),
    "demo_masactrl": ("Original", "Edited image", "True edited image (for comparison)"),
    "demo_plug_and_play": ("Original", "Edited image", "True edited image (for comparison)"),
    "demo_several_edits": ("Original", "Edited image"),
    "demo_noise_regularised": ("Original", "Rebuilt image", "Noise before and after"),
    "demo_caso_train": ("Loss and accuracy",),
    "demo_caso_texts": ("Loss and accuracy",),
    "demo_caso_edit": ("Original", "Edited image", "True edited image (for comparison)"),
    "demo_caso_multi": ("Original", "Edited image"),
    "demo_deltaedit_text": (INVERTED, EDITED, "Where it changed", "Edited image"),
    "demo_deltaedit_images": (INVERTED, EDITED, "Edited image"),
    "demo_deltaedit_diffusion": (INVERTED, "Where it changed", "Edited image"),
    "demo_distil_edit": ("Original", "Edited image", "True edited image (for comparison)"),
    "demo_distil_train": ("Samples", "Loss and PSNR"),
    "demo_region_edit": ("Original", "The best boxes", "Edited image", "True edited image (for comparison)"),
    "demo_edit_by_words": ("Original", "Place that was found", "Edited image", "True edited image (for comparison)"),
    "demo_region_mask_to_inpaint": ("Original", "Mask that was found", "Edited image"),
}


def ask(server: str, path: str, body: Any = None) -> Any:
    """Bytes of a GET, or of a POST of JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server + path, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return response.read()


def run(server: str, prompt: dict[str, Any]) -> dict[str, Any]:
    """Outputs of a finished prompt by node number."""
    number = json.loads(ask(server, "/prompt", {"prompt": prompt}))["prompt_id"]
    while True:
        history = json.loads(ask(server, f"/history/{number}"))
        if number in history:
            break
        time.sleep(0.5)
    status = history[number]["status"]
    if status["status_str"] != "success":
        raise SystemExit(json.dumps(status["messages"][-1], indent=1)[:2000])
    return history[number]["outputs"]


def compose(pictures: list[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures side by side, each under its title."""
    font = ImageFont.load_default(15)
    sized = [
        (title, image.resize((round(SIDE * image.width / image.height), SIDE), Image.Resampling.LANCZOS))
        for title, image in pictures
    ]
    width = sum(image.width for _, image in sized) + MARGIN * (len(sized) + 1)
    sheet = Image.new("RGB", (width, SIDE + HEAD + MARGIN), (32, 32, 32))
    draw, left = ImageDraw.Draw(sheet), MARGIN
    for title, image in sized:
        sheet.paste(image, (left, HEAD))
        draw.text((left, 9), title.removesuffix(" (for comparison)"), fill=(230, 230, 230), font=font)
        left += image.width + MARGIN
    return sheet


def beginnings(name: str) -> list[int]:
    """The left edges of a preview's pictures, found by the sheet's own background between them."""
    with Image.open(ROOT / "workflows" / "previews" / f"{name}.png", formats=["PNG"]) as sheet:
        row = [sheet.convert("RGB").crop((x, HEAD, x + 1, HEAD + SIDE)).getcolors(1) for x in range(sheet.width)]
    empty = [colors is not None and colors[0][1] == (32, 32, 32) for colors in row]
    starts = [x for x in range(1, len(empty)) if empty[x - 1] and not empty[x]]
    assert len(starts) == len(SHOWN[name]), f"{name}: {len(starts)} pictures are seen"
    return starts


def thumbnail(name: str) -> Image.Image:
    """The square of a demo workflow: left half before, right half after; a training's last picture as it is."""
    titles, starts = SHOWN[name], beginnings(name)
    with Image.open(ROOT / "workflows" / "previews" / f"{name}.png", formats=["PNG"]) as sheet:
        sheet = sheet.convert("RGB")
        if name in WHOLE:
            number = WHOLE[name]
            end = [*starts[1:], sheet.width][number] - MARGIN
            shown = sheet.crop((starts[number], HEAD, end, HEAD + SIDE))
            shown.thumbnail((THUMBNAIL, THUMBNAIL))
            square = Image.new("RGB", (THUMBNAIL, THUMBNAIL), (255, 255, 255))
            square.paste(shown, (0, (THUMBNAIL - shown.height) // 2))
            return square
        after = next(n for n, title in enumerate(titles) if title in ("Edited image", "Rebuilt image"))
        before = next((n for n, title in enumerate(titles) if title == "Original"), 0)
        halves = [
            sheet.crop((starts[number], HEAD, starts[number] + SIDE, HEAD + SIDE)).resize(
                (THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS
            )
            for number in (before, after)
        ]
    square, half = halves[1], THUMBNAIL // 2
    square.paste(halves[0].crop((0, 0, half, THUMBNAIL)), (0, 0))
    draw = ImageDraw.Draw(square)
    draw.rectangle((half - 1, 0, half, THUMBNAIL), fill=(255, 255, 255))
    return labelled(square, {12: "before", half + 12: "after"})


def own_photo(text: str) -> Image.Image:
    """The square of a workflow that needs a person's own model: a photo to be edited, and which model."""
    with Image.open(ROOT / "assets" / "demo" / "images" / "00.png", formats=["PNG"]) as photo:
        square = photo.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return labelled(square, {12: f"your photo, {text}"})


def labelled(square: Image.Image, words: dict[int, str]) -> Image.Image:
    """Words in the bottom corner, each on a dark patch at its left edge."""
    draw, font = ImageDraw.Draw(square), ImageFont.load_default(18)
    for left, text in words.items():
        box = draw.textbbox((left, THUMBNAIL - 32), text, font=font)
        draw.rectangle((box[0] - 6, box[1] - 4, box[2] + 6, box[3] + 4), fill=(20, 20, 20))
        draw.text((left, THUMBNAIL - 32), text, fill=(240, 240, 240), font=font)
    return square


def write_thumbnails(names: list[str]) -> None:
    """The thumbnails of workflows, and of the Apps that stand for them."""
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        from app_graphs import APPS
        from gallery import template_name
    finally:
        sys.path.pop(0)
    for name in names:
        square = own_photo(OWN_MODEL[name]) if name in OWN_MODEL else thumbnail(name)
        for stem in [
            template_name(name),
            *(f"{title}.app" for title, (stands_for, _) in APPS.items() if stands_for == name),
        ]:
            square.save(ROOT / "workflows" / f"{stem}.jpg", quality=90)
        if name not in WHOLE and name not in OWN_MODEL:  # for the help pages
            square.resize((240, 240), Image.Resampling.LANCZOS).save(PICTURES / f"{name}.jpg", quality=88)


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="http://127.0.0.1:8188")
    parser.add_argument("--thumbnails", action="store_true", help="run nothing; make them from the previews")
    parser.add_argument("names", nargs="*", default=list(SHOWN), help="workflows to run; all demo ones when left out")
    arguments = parser.parse_args()
    if arguments.thumbnails:
        write_thumbnails([*arguments.names, *OWN_MODEL])
        return
    server = arguments.server
    for name in arguments.names:
        titles = SHOWN[name]
        prompt = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
        outputs = run(server, prompt)
        numbers = {node["_meta"]["title"]: number for number, node in prompt.items()}
        pictures = []
        for entry in titles:
            title, caption = (entry, entry) if isinstance(entry, str) else entry
            (image,) = outputs[numbers[title]]["images"]
            query = urllib.parse.urlencode({key: image[key] for key in ("filename", "subfolder", "type")})
            pictures.append(
                (caption, Image.open(io.BytesIO(ask(server, f"/view?{query}")), formats=["PNG"]).convert("RGB"))
            )
        sheet = compose(pictures)
        sheet.save(ROOT / "workflows" / "previews" / f"{name}.png", optimize=True)
        write_thumbnails([name])
        print(f"written  {name}: {'; '.join(text for output in outputs.values() for text in output.get('text', ()))}")


if __name__ == "__main__":
    main()
