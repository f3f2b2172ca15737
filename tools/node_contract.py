"""A node's public contract (ids, order, types, defaults) as plain data, from a schema or from /object_info."""

from __future__ import annotations

from typing import Any

#: Options of a widget that saved workflows depend on.
FROZEN = ("default", "min", "max", "multiline", "control_after_generate", "advanced", "options")
#: Combos whose choices depend on what is on disk.
OPEN_COMBOS = {
    "inversion_file", "direction_file", "source_file", "pictures", "classifier_file", "embedding_file",
    "vision_model", "clip_model", "network_file", "token_model", "generator_file", "encoder_file",
    "style_diffusion_file",
    "mapper_file", "relevance_file", "picture_folder", "caption_model", "text_model",
}  # fmt: skip


def _options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    kept = {key: options[key] for key in FROZEN if options.get(key) not in (None, False)}
    if name in OPEN_COMBOS:
        kept.pop("options", None)
        kept.pop("default", None)
    return kept


def from_schema(schema: Any) -> dict[str, Any]:
    """Contract of a node by its schema under the fake host."""
    return {
        "display_name": schema.display_name,
        "category": schema.category,
        "inputs": [[s.id, s.type, bool(s.options.get("optional")), _options(s.id, s.options)] for s in schema.inputs],
        "outputs": [[s.options["display_name"], s.type] for s in schema.outputs],
    }


def from_object_info(info: dict[str, Any]) -> dict[str, Any]:
    """Contract of a node by a server's /object_info."""
    inputs = []
    for group in ("required", "optional"):
        for name, spec in info["input"].get(group, {}).items():
            options = dict(spec[1]) if len(spec) > 1 else {}
            kind = spec[0]
            if isinstance(kind, list):
                kind, options["options"] = "COMBO", kind
            inputs.append([name, kind, group == "optional", _options(name, options)])
    return {
        "display_name": info["display_name"],
        "category": info["category"],
        "inputs": inputs,
        "outputs": [[name, kind] for name, kind in zip(info["output_name"], info["output"], strict=True)],
    }
