"""The socket of distilled edits."""

from __future__ import annotations

from ..host.schema import io

CATEGORY = "semantic editing/distillation"

#: Carries a ``Managed[core.distillation.network.DistilledEditor]``.
DistilledEditType = io.Custom("DISTILLED_EDIT")
