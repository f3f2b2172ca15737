"""The sockets of DeltaEdit."""

from __future__ import annotations

from ..common.managed import Managed as Managed  # the nodes take both from here
from ..host.schema import io

CATEGORY = "semantic editing/deltaedit"

#: Carries a ``Managed[core.deltaedit.stylegan2.StyleGAN2]``.
StyleGAN2Type = io.Custom("STYLEGAN2")
#: Carries a ``core.deltaedit.style_code.StyleCode`` on the CPU.
StyleCodeType = io.Custom("STYLE_CODE")
#: Carries a ``core.deltaedit.alignment.FaceCrop``: where the face was taken from the photo.
FaceCropType = io.Custom("FACE_CROP")
#: Carries a ``core.deltaedit.latents.Latents``: pairs of CLIP features and style codes to train on.
DeltaLatentsType = io.Custom("DELTA_LATENTS")
#: Carries a ``Managed[core.deltaedit.mapper.DeltaMapper]``.
DeltaMapperType = io.Custom("DELTA_MAPPER")
#: Carries a ``core.deltaedit.relevance.Relevance`` on the CPU.
RelevanceType = io.Custom("RELEVANCE_MATRIX")
#: Carries a ``Managed[core.deltaedit.style_diffusion.StyleDiffusion]``.
StyleDiffusionType = io.Custom("STYLE_DIFFUSION")
#: Carries a ``core.deltaedit.style_diffusion.StyleNoise`` on the CPU.
StyleNoiseType = io.Custom("STYLE_NOISE")
