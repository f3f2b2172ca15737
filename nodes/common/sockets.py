"""Sockets that nodes of several techniques share."""

from __future__ import annotations

from ..host.schema import io

#: Carries a ``core.inversion.Inversion``.
InversionType = io.Custom("INVERSION")
#: Carries a ``core.models.vision_features.VisionFeatures``, which loads itself to the host's device when called.
VisionFeaturesType = io.Custom("VISION_FEATURES")
#: Carries a ``core.models.clip.ClipScorer``, which loads itself to the host's device when used.
ClipScorerType = io.Custom("CLIP_SCORER")
