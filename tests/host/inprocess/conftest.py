"""Run by the host's own interpreter (see ../test_inprocess.py): ComfyUI's modules in process, on the CPU, with tiny
random models.

The pack is loaded from its folder under a name that is no package name, as ComfyUI does.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

HOST = os.environ["COMFYUI_PATH"]
PACK = Path(__file__).resolve().parents[3]
sys.path.insert(0, HOST)
sys.argv = sys.argv[:1]

from comfy.cli_args import args  # noqa: E402

args.cpu = True  # before anything else of comfy: a CUDA build of torch without a GPU dies otherwise

import comfy.latent_formats  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.supported_models_base  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)  # the models are tiny; more threads only wait for each other
CPU = torch.device("cpu")


def load_pack(folder: Path = PACK, name: str = "custom_nodes_x_pack"):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return name


class Pack:
    """``pack("core.denoiser")`` imports a module of the pack."""

    def __init__(self):
        self.name = load_pack()
        self("nodes.demo.load")  # first, as in the registry: it enters what the loaders of others offer

    def __call__(self, module: str):
        return importlib.import_module(f"{self.name}.{module}")


@pytest.fixture(scope="session")
def pack():
    return Pack()


FAMILIES = {
    "sd1": {"attention_head_dim": 2, "cross_attention_dim": 768},
    "sd2": {"attention_head_dim": [2, 4], "cross_attention_dim": 1024, "use_linear_projection": True},
    "sdxl": {
        "attention_head_dim": [2, 4],
        "cross_attention_dim": 96,
        "use_linear_projection": True,
        "transformer_layers_per_block": [1, 2],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 64 + 6 * 256,
    },
}
POOLED_WIDTH = 64


def diffusers_unet(family):
    """A tiny random diffusers U-Net of ``family``: two levels, cross-attention on both, seeded."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(11)
        return (
            UNet2DConditionModel(
                sample_size=8,
                in_channels=4,
                out_channels=4,
                block_out_channels=(32, 64),
                layers_per_block=1,
                norm_num_groups=32,
                down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
                **FAMILIES[family],
            )
            .eval()
            .requires_grad_(False)
        )


def comfy_model(pack, family, unet, dtype=torch.float32, compute=None):
    """The same weights as a ComfyUI MODEL."""
    weights = pack("nodes.host.weights")
    kinds = {
        "sd1": (comfy.model_base.BaseModel, comfy.model_base.ModelType.EPS, comfy.latent_formats.SD15),
        "sd2": (comfy.model_base.BaseModel, comfy.model_base.ModelType.V_PREDICTION, comfy.latent_formats.SD15),
        "sdxl": (comfy.model_base.SDXL, comfy.model_base.ModelType.EPS, comfy.latent_formats.SDXL),
    }
    base_class, model_type, latent = kinds[family]
    config_class = type(
        "Config", (comfy.supported_models_base.BASE,), {"unet_extra_config": {}, "latent_format": latent}
    )
    arguments = weights.unet_config(dict(unet.config))
    config = config_class(arguments)
    config.set_inference_dtype(dtype, compute)
    base = base_class(config, model_type=model_type)
    base.load_model_weights(weights.convert_unet(unet.state_dict(), arguments), "")
    return comfy.model_patcher.ModelPatcher(base, load_device=CPU, offload_device=CPU)


def flow_model():
    """A tiny random SD3: a rectified-flow transformer with shift 3."""
    config_class = type(
        "Config",
        (comfy.supported_models_base.BASE,),
        {"unet_extra_config": {}, "latent_format": comfy.latent_formats.SD3, "sampling_settings": {"shift": 3.0}},
    )
    config = config_class(
        {
            "in_channels": 16,
            "patch_size": 2,
            "depth": 2,
            "input_size": None,
            "pos_embed_max_size": 16,
            "num_patches": 256,
            "pos_embed_scaling_factor": None,
            "adm_in_channels": 32,
            "qk_norm": None,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 48, "out_features": 128},
            },
        }
    )
    config.set_inference_dtype(torch.float32, None)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        base = comfy.model_base.SD3(config)
        # The table of positions is a buffer of memory as it was found, NaN at times; a checkpoint would bring it along.
        for tensor in (*base.diffusion_model.parameters(), *base.diffusion_model.buffers()):
            torch.nn.init.normal_(tensor, std=0.05)
    return comfy.model_patcher.ModelPatcher(base, load_device=CPU, offload_device=CPU)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conditioning(family, seed=1, tokens=7, batch=1):
    if family == "flow":
        return [[noise(batch, tokens, 48, seed=seed), {"pooled_output": noise(batch, 32, seed=seed + 100)}]]
    options = {"pooled_output": noise(batch, POOLED_WIDTH, seed=seed + 100)} if family == "sdxl" else {}
    return [[noise(batch, tokens, FAMILIES[family]["cross_attention_dim"], seed=seed), options]]


@pytest.fixture(scope="session")
def models(pack):
    """family -> SimpleNamespace(unet, model): diffusers and ComfyUI on the same weights."""
    pytest.importorskip("diffusers")
    made = {}

    def get(family):
        if family not in made:
            unet = diffusers_unet(family)
            made[family] = SimpleNamespace(unet=unet, model=comfy_model(pack, family, unet))
        return made[family]

    return get


@pytest.fixture(scope="module")
def demo(pack):
    """MODEL, CLIP and VAE of the demo, as its loader gives them."""
    if not (PACK / "assets" / "demo" / "unet").is_dir():
        pytest.skip("assets/demo is not there")
    with torch.inference_mode():
        return pack("nodes.demo.comfy_model").load_demo_model()


@pytest.fixture(scope="session")
def flow():
    return flow_model()


def on_settings(choices, given):
    """``given`` with those widgets that stand on a technique's settings node as what that node hands on.

    Args:
        choices: the dataclass that it hands on.
    """
    own = {name: value for name, value in given.items() if name in choices.__dataclass_fields__}
    return {name: value for name, value in given.items() if name not in own} | {"settings": choices(**own)}


def node(pack, module, name, **given):
    """Outputs of a node of the pack, with its defaults and what is given."""
    cls = getattr(pack(f"nodes.{module}"), name)
    values = {
        each.id: each.default for each in cls.define_schema().inputs if getattr(each, "default", None) is not None
    }
    return cls.execute(**(values | given)).args


@pytest.fixture(autouse=True)
def every_report_begins_with_a_sentence(pack, monkeypatch):
    """Whatever a test runs: what a node shows begins with a sentence."""
    reports = pack("nodes.common.reports")
    plain = reports.is_sentence

    def strict(line):
        room = sys._getframe(2).f_globals["__name__"]
        assert plain(line), f"{room} shows {line!r} first"
        return plain(line)

    monkeypatch.setattr(reports, "is_sentence", strict)
