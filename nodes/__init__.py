"""The ComfyUI face of the pack: one thin module a technique, and ``host``, the only one that knows ComfyUI."""
