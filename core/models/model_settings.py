"""What is believed of a model's configuration: the keys and values that go on to transformers and diffusers.

All else in it is left behind, so that it cannot name code, a hub or a kernel, and no number is larger than that of any
network.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from ..errors import EditingError
from ..reading.forms import Form, Unfit, digits, either, flag, listed, mapped, maybe, number, one_of, text, whole

CONFIG = "config.json"
#: Patches of a picture: some networks keep a table of their pairs.
MOST_PATCHES = 10_000
MOST_LABELS = 100_000
ACTIVATIONS = (
    "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu6", "leaky_relu", "silu", "swish",
    "hardswish", "tanh", "sigmoid", "linear",
)  # fmt: skip


def _one_or_many(form: Form) -> Form:
    return maybe(either(form, listed(form, 0, 64)))


_WIDTH = _one_or_many(whole(1, 131_072))
_COUNT = _one_or_many(whole(0, 256))
_SIDE = _one_or_many(whole(1, 2048))
_SMALL = _one_or_many(whole(0, 512))
_NUMBER = maybe(number(-100, 100))
_RATIO = maybe(number(0, 100))
_FLAG = maybe(flag)
_TOKEN = maybe(whole(0, 1_000_000))
#: Keys that say how many layers there are.
LAYERS = (
    "num_hidden_layers", "depths", "num_block_repeats", "num_layers", "num_stages", "num_decoder_layers", "n_layer",
)  # fmt: skip
#: What may be passed on of a transformers configuration: enough for the networks of :data:`CLASSIFIERS`, for CLIP, for
#: captioners and for networks that write.
SETTINGS: dict[str, Form] = {
    **dict.fromkeys(
        (
            "hidden_size", "intermediate_size", "projection_dim", "embed_dim", "embedding_size", "hidden_sizes",
            "hidden_dim", "pooler_output_size", "in_channels", "out_channels", "neck_hidden_sizes", "groups_width",
            "num_channels", "encoder_hidden_size", "image_text_hidden_size", "ffn_dim", "word_embed_proj_dim",
            "d_model", "d_kv", "d_ff", "n_embd", "n_inner",
        ),
        _WIDTH,
    ),
    **dict.fromkeys(
        (
            *LAYERS, "num_attention_heads", "num_heads", "num_register_tokens", "num_query_tokens", "n_head",
            "relative_attention_num_buckets",
        ),
        _COUNT,
    ),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "relative_attention_max_distance"), _one_or_many(whole(0, 8192))
    ),
    "image_size": _SIDE,
    **dict.fromkeys(
        (
            "patch_size", "kernel_sizes", "strides", "depthwise_padding", "output_stride", "encoder_stride",
            "min_depth", "depth_divisible_by", "depth_divisor", "conv_kernel_size", "cross_attention_frequency",
        ),
        _SMALL,
    ),
    **dict.fromkeys(("window_size", "pretrained_window_sizes"), _one_or_many(whole(0, 64))),
    **dict.fromkeys(
        (
            "layer_norm_eps", "batch_norm_eps", "batch_norm_momentum", "initializer_range", "initializer_factor",
            "logit_scale_init_value", "layer_scale_init_value", "layerscale_value", "attention_dropout",
            "attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout_prob", "drop_path_rate",
            "drop_connect_rate", "dropout_rate", "layer_norm_epsilon",
        ),
        _NUMBER,
    ),
    **dict.fromkeys(("mlp_ratio", "expand_ratio", "expand_ratios"), _one_or_many(number(0, 100))),
    **dict.fromkeys(("depth_multiplier", "squeeze_expansion_ratio", "width_coefficient", "depth_coefficient"), _RATIO),
    **dict.fromkeys(
        (
            "qkv_bias", "use_absolute_embeddings", "use_absolute_position_embeddings", "use_mask_token",
            "use_mean_pooling", "use_relative_position_bias", "use_shared_relative_position_bias", "use_swiglu_ffn",
            "downsample_in_bottleneck", "downsample_in_first_stage", "finegrained_output", "first_layer_is_expansion",
            "tf_padding", "apply_layernorm", "vision_use_head", "do_layer_norm_before", "tie_word_embeddings",
            "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "scale_decoder_outputs",
        ),
        _FLAG,
    ),
    **dict.fromkeys(("hidden_act", "pooler_act", "activation_function"), maybe(one_of(ACTIVATIONS))),
    "feed_forward_proj": maybe(one_of(("relu", "gated-gelu", "gated-silu"))),
    "layer_type": maybe(one_of(("basic", "bottleneck", "x", "y"))),
    "pooling_type": maybe(one_of(("mean", "max"))),
    "problem_type": one_of((None, "regression", "single_label_classification", "multi_label_classification")),
    **dict.fromkeys(
        (
            "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "image_token_index", "vocab_size",
            "decoder_start_token_id",
        ),
        _TOKEN,
    ),
    "num_labels": maybe(whole(1, MOST_LABELS)),
    "id2label": maybe(mapped(text(), 1, MOST_LABELS, digits(0, MOST_LABELS))),
}  # fmt: skip
#: transformers' image classifiers by model type.
CLASSIFIERS = {
    "beit": "BeitForImageClassification",
    "clip": "CLIPForImageClassification",
    "convnext": "ConvNextForImageClassification",
    "convnextv2": "ConvNextV2ForImageClassification",
    "data2vec-vision": "Data2VecVisionForImageClassification",
    "deit": "DeiTForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
    "dinov2_with_registers": "Dinov2WithRegistersForImageClassification",
    "efficientnet": "EfficientNetForImageClassification",
    "mobilenet_v1": "MobileNetV1ForImageClassification",
    "mobilenet_v2": "MobileNetV2ForImageClassification",
    "mobilevit": "MobileViTForImageClassification",
    "regnet": "RegNetForImageClassification",
    "resnet": "ResNetForImageClassification",
    "siglip": "SiglipForImageClassification",
    "swin": "SwinForImageClassification",
    "swinv2": "Swinv2ForImageClassification",
    "vit": "ViTForImageClassification",
    "vit_msn": "ViTMSNForImageClassification",
}
PARTS_OF_CLIP = ("text_config", "vision_config")

#: What a configuration of a diffusers part may hold; the part's own class says which keys it knows.
_SCALAR = either(flag, whole(-1, 131_072), number(-1e6, 1e6), text(60))
DIFFUSERS_SETTING = maybe(either(_SCALAR, listed(maybe(either(_SCALAR, listed(_SCALAR, 0, 64))), 0, 1000)))
DIFFUSERS_SETTINGS: dict[str, Form] = {
    "sample_size": _one_or_many(whole(1, 512)),
    "num_train_timesteps": whole(1, 10_000),
    "latent_channels": whole(1, 1024),
}
#: Keys that multiply to the number of layers.
DIFFUSERS_LAYERS = (
    "layers_per_block", "transformer_layers_per_block", "reverse_transformer_layers_per_block", "num_hidden_layers",
    "num_res_blocks",
)  # fmt: skip
SCHEDULERS = (
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
    "DEISMultistepScheduler", "UniPCMultistepScheduler", "LCMScheduler", "TCDScheduler", "AmusedScheduler",
)  # fmt: skip


def transformers_settings(config: Mapping[str, Any], name: str, parts: Sequence[str] = PARTS_OF_CLIP) -> dict[str, Any]:
    """The part of a transformers configuration that is passed on: known keys with values of the right form.

    Args:
        parts: keys of the configurations within it that are passed on likewise.

    Raises:
        EditingError: a value is not of its form.
    """
    made = {key: value for key, value in config.items() if key in SETTINGS}
    try:
        for key, value in made.items():
            SETTINGS[key](value, key)
        _check_patches(made)
    except Unfit as error:
        raise EditingError(f"{name} has a damaged {CONFIG}: {error}; download it again.") from error
    labels = made.get("id2label")
    if labels is not None:
        if sorted(map(int, labels)) != list(range(len(labels))):
            raise EditingError(f"{name} does not number its classes from 0; download it again.")
        made["id2label"] = {int(key): label for key, label in labels.items()}
        made["label2id"] = {label: key for key, label in made["id2label"].items()}
        made.pop("num_labels", None)
    for part in parts:
        inner = [config.get(key) for key in (part, f"{part}_dict")]  # old files have the second as well
        if any(isinstance(entry, dict) for entry in inner):
            merged = {key: value for entry in inner if isinstance(entry, dict) for key, value in entry.items()}
            made[part] = transformers_settings(merged, name, ())
    return made


def _check_patches(settings: Mapping[str, Any]) -> None:
    sides, patches = (numbers_in(settings.get(key)) for key in ("image_size", "patch_size"))
    if sides and patches and (max(sides) / max(min(patches), 1)) ** 2 > MOST_PATCHES:
        raise Unfit(f"its pictures have more than {MOST_PATCHES} patches")


def numbers_in(value: Any) -> list[int]:
    """The whole numbers in a setting that is one or a list."""
    values = value if isinstance(value, list) else [value]
    return [part for part in values if type(part) is int]


def layers_of(settings: Mapping[str, Any]) -> int:
    """About how many layers a transformers configuration asks for."""
    counts = [sum(numbers_in(settings.get(key))) for key in LAYERS]
    return int(max(counts, default=0) * max(1.0, settings.get("depth_coefficient") or 1.0))


def diffusers_settings(given: Mapping[str, Any], cls: Any, file: str, name: str) -> dict[str, Any]:
    """The part of a diffusers configuration that is passed on: what ``cls`` knows, with values of the right form.

    Raises:
        EditingError: a value is not of its form; it names ``file``.
    """
    made = {key: value for key, value in given.items() if key in inspect.signature(cls.__init__).parameters}
    made.pop("quantization_config", None)
    try:
        for key, value in made.items():
            DIFFUSERS_SETTINGS.get(key, DIFFUSERS_SETTING)(value, key)
            if key in DIFFUSERS_LAYERS and any(count > 256 for count in _flat(value)):
                raise Unfit(f"its {key} is more than any network has")
    except Unfit as error:
        raise EditingError(f"{name} has a damaged {file}: {error}; download the model again.") from error
    return {"_class_name": cls.__name__, **made}


def diffusers_layers_of(settings: Mapping[str, Any]) -> int:
    """How many layers a diffusers configuration asks for, or more."""
    factors = [max([1, *_flat(settings.get(key))]) for key in DIFFUSERS_LAYERS]
    return prod(factors) * max(1, len(_flat(settings.get("block_out_channels"))))


def _flat(value: Any) -> list[int]:
    if isinstance(value, list):
        return [number for part in value for number in _flat(part)]
    return [value] if type(value) is int else []
