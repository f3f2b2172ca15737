"""The algorithms: torch and numpy only, never ComfyUI. Usable from a notebook as ``semantic_editing.core``."""
