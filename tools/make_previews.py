"""Run the demo workflows on a running ComfyUI and compose workflows/previews/<name>.png and the thumbnail
workflows/<name>.jpg.

python tools/make_previews.py --server http://127.0.0.1:8188
"""

from __future__ import annotations

import argparse
import io
import json
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
SIDE, MARGIN, HEAD = 256, 16, 34
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


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="http://127.0.0.1:8188")
    parser.add_argument("names", nargs="*", default=list(SHOWN), help="workflows to run; all demo ones when left out")
    arguments = parser.parse_args()
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
        sheet.save(ROOT / "workflows" / f"{name}.jpg", quality=90)
        print(f"written  {name}: {'; '.join(text for output in outputs.values() for text in output.get('text', ()))}")


if __name__ == "__main__":
    main()
