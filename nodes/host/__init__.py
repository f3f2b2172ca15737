"""The only code that imports ComfyUI. It knows no technique.

=====================  =====================================================================================
``schema``             V3 node API with the compatibility shim
``sampling``           ``run`` an algorithm on a MODEL; ``DenoiserGuider`` for SamplerCustomAdvanced
``session``            what an algorithm is given while a MODEL is loaded
``denoiser``           the MODEL as ``core.denoiser.Denoiser``, with attention control
``identity``           what a MODEL is by content: its weights, and what is put on them
``attention``          attention control through the host's override
``gradients``          the one context manager that makes gradients possible under ``inference_mode``
``memory``             what to say when memory runs out
``latents``            LATENT and NOISE in and out of model space
``conditioning``       CONDITIONING as plain tensors; batched text encoding
``managed_models``     the pack's own networks (classifiers, CLIP, vision transformers), managed by the host
``feature_trunks``     CLIP_VISION and CLIP_SCORER as trunks of classifiers
``progress``           progress bars, previews, the text under a running node, Cancel
``tokens``             token vectors through the host's text encoders, as CONDITIONING or with gradients
``vae``                pictures into latents, and latents into pictures with gradients
``folders``            the pack's model folders, folders under input
``weights``            diffusers' weights under ComfyUI's names
=====================  =====================================================================================

Node modules import the module they need, so that one that does not import costs only the nodes that need it.
"""
