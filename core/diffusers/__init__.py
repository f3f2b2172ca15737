"""The backend without ComfyUI: diffusers and transformers models behind the pack's seams."""
