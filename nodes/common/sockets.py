"""Sockets that nodes of several techniques share; a technique's own are declared by the module that makes what they carry."""

from __future__ import annotations

from ..host.schema import io

#: Carries a ``core.inversion.Inversion``.
InversionType = io.Custom("INVERSION")
#: Carries a ``core.models.vision_features.VisionFeatures``, which brings itself to the host's device when called.
VisionFeaturesType = io.Custom("VISION_FEATURES")
#: Carries a ``core.models.clip.ClipScorer``, which brings itself to the host's device when used.
ClipScorerType = io.Custom("CLIP_SCORER")
