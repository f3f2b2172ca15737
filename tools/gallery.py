"""What a person reads in the template gallery: the files of workflows/ are called by these names, in this order, while
workflows/api/ and docs/ keep the short names of the scripts. A workflow that is not listed keeps its short name."""

from __future__ import annotations

GALLERY = {
    "demo_word_edit": "11 Edit Photo by Words - demo",
    "sd15_word_edit": "12 Edit Photo by Words - SD 1.5",
    "sdxl_word_edit": "13 Edit Photo by Words - SDXL",
    "demo_several_edits": "14 Several Edits at Once - demo",
    "demo_prompt_to_prompt": "15 Change the Prompt - demo",
    "demo_masactrl": "16 Change a Shape - demo",
    "demo_plug_and_play": "17 Change Looks, Keep Structure - demo",
    "sd15_concept_edit": "18 Put Your Own Concept in - SD 1.5",
    "demo_caso_edit": "21 Turn an Attribute Up or Down - demo",
    "demo_caso_multi": "22 Two Attributes at Once - demo",
    "sd15_caso_edit": "23 Turn an Attribute Up or Down - SD 1.5",
    "demo_caso_texts": "24 An Attribute Without Pictures - demo",
    "sd15_caso_train": "28 Learn an Attribute - SD 1.5",
    "demo_caso_train": "29 Learn an Attribute - demo",
    "demo_deltaedit_text": "31 Face, Edit by Text - demo",
    "ffhq_deltaedit": "32 Face, Edit by Text - FFHQ",
    "demo_deltaedit_images": "33 Face, Edit by Example - demo",
    "demo_deltaedit_diffusion": "34 Face, Edit by Text, Diffusion - demo",
    "demo_edit_by_words": "60 Edit by Words, Place Found - demo",
    "demo_region_edit": "61 Edit, Place Found - demo",
    "sd15_inpaint_region_edit": "62 Edit by Words, Place Found - SD 1.5",
    "demo_region_mask_to_inpaint": "63 Found Mask for Inpainting - demo",
    "demo_distil_edit": "41 Edit in Milliseconds - demo",
    "demo_distil_train": "49 Teach a Network an Edit - demo",
    "demo_synthetic_edit": "51 Make a Picture and Edit It - demo",
    "demo_invert_reconstruct": "52 Invert and Rebuild - demo",
    "demo_noise_regularised": "53 Noise That Looks Like Noise - demo",
    "demo_pix2pix_zero": "54 pix2pix-zero, Whole - demo",
}


def template_name(name: str) -> str:
    """The file name in workflows/, without its ending, of a workflow."""
    return GALLERY.get(name, name)
