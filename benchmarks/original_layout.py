"""A diffusers pipeline's weights under the names of the original Stable Diffusion files, written from the two naming
schemes.
"""

import re

import torch

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def original_unet(unet):
    """State dict of a ``UNet2DConditionModel`` under the original names, which number all blocks of a way through."""
    blocks = (
        unet.config.layers_per_block + 1
    )  # a level's blocks: its layers and the change of size going down, one more layer going up
    attended = {str(i) for i, block in enumerate(unet.up_blocks) if hasattr(block, "attentions")}

    def module(name):
        if match := re.fullmatch(r"down_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", name):
            return f"input_blocks.{1 + blocks * int(match[1]) + int(match[3])}.{int(match[2] == 'attentions')}.", match[
                4
            ]
        if match := re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv", name):
            return f"input_blocks.{blocks * (int(match[1]) + 1)}.0.op", ""
        if match := re.fullmatch(r"up_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", name):
            return f"output_blocks.{blocks * int(match[1]) + int(match[3])}.{int(match[2] == 'attentions')}.", match[4]
        if match := re.fullmatch(r"up_blocks\.(\d)\.upsamplers\.0\.conv", name):
            return f"output_blocks.{blocks * int(match[1]) + blocks - 1}.{1 + (match[1] in attended)}.conv", ""
        if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
            return f"middle_block.{1 if match[1] == 'attentions' else 2 * int(match[2])}.", match[3]
        return UNET_OUTSIDE[name], ""

    found = {}
    for key, value in unet.state_dict().items():
        name, leaf = key.rsplit(".", 1)
        start, inner = module(name)
        found[f"model.diffusion_model.{start}{RESNET.get(inner, inner)}.{leaf}"] = value
    return found


def original_vae(vae):
    """State dict of an ``AutoencoderKL`` under the original names."""
    names = (
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"(down|up)_blocks\.(\d)\.resnets\.(\d)", r"\1.\2.block.\3"),
        (r"(down|up)_blocks\.(\d)\.(down|up)samplers\.0", r"\1.\2.\3sample"),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
    )
    last, found = len(vae.config.block_out_channels) - 1, {}
    for key, value in vae.state_dict().items():
        for pattern, replacement in names:
            key = re.sub(pattern, replacement, key)
        key = re.sub(r"\bup\.(\d)\.", lambda match: f"up.{last - int(match[1])}.", key)
        found[f"first_stage_model.{key}"] = value[:, :, None, None] if "attn_1" in key and value.ndim == 2 else value
    return found


def text_weights(encoder):
    """State dict with the same names whether or not this transformers wraps the tower in ``text_model``."""
    return {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}


def original_open_clip(encoder, prefix, unused_layer=False):
    """OpenCLIP's layout: q, k, v in one matrix. ``unused_layer`` adds the last one, which SD 2 does not use."""
    weights, layers, found = text_weights(encoder), encoder.config.num_hidden_layers, {}
    outside = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    for theirs, ours in outside.items():
        found[prefix + ours] = weights[theirs]
    inner = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for layer in range(layers + unused_layer):
        source, target = f"encoder.layers.{min(layer, layers - 1)}.", f"{prefix}transformer.resblocks.{layer}."
        for leaf in ("weight", "bias"):
            for theirs, ours in inner.items():
                found[f"{target}{ours}.{leaf}"] = weights[f"{source}{theirs}.{leaf}"].clone()
            parts = [weights[f"{source}self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            found[f"{target}attn.in_proj_{leaf}"] = torch.cat(parts)
    if "text_projection.weight" in weights:
        found[f"{prefix}text_projection"] = weights["text_projection.weight"].T.contiguous()
    return found


def original(pipeline, family):
    """A pipeline's weights as one file of the original layout holds them."""
    tensors = original_unet(pipeline.unet) | original_vae(pipeline.vae)
    first = text_weights(pipeline.text_encoder)
    if family == "sd2":
        tensors |= original_open_clip(pipeline.text_encoder, "cond_stage_model.model.", unused_layer=True)
    else:
        prefix = (
            "cond_stage_model.transformer.text_model."
            if family == "sd1"
            else "conditioner.embedders.0.transformer.text_model."
        )
        tensors |= {prefix + key: value for key, value in first.items()}
    if family == "sdxl":
        tensors |= original_open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    return {key: value.clone().contiguous() for key, value in tensors.items()}
