"""What the inversion nodes hand out for a flow model, wired as a person would: stock SamplerCustomAdvanced, CFGGuider,
euler.
"""

import comfy.samplers
import folder_paths
import pytest
import torch
from comfy_extras.nodes_custom_sampler import CFGGuider, SamplerCustomAdvanced
from conftest import conditioning, noise

TOLERANCE = 1e-8
STEPS = 4
NODES = {
    "SPDInvInversion": (
        "inversion.spdinv",
        {
            "solver": "auto",
            "tolerance": TOLERANCE,
            "max_iterations": 25,
            "learning_rate": 1e-3,
        },
    ),
    "AutocorrDDIMInversion": (
        "pix2pix_zero.autocorr",
        {
            "weight_pair": 20.0,
            "weight_kl": 20.0,
            "iterations": 2,
            "shifts": "random",
            "preset": "consistent",
            "seed": 1,
        },
    ),
}


@pytest.fixture
def previews(tmp_path, monkeypatch):
    """The folder that the nodes' plots go to."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    return tmp_path


def stock(model, cond, start, sigmas, latent):
    """Samples of SamplerCustomAdvanced at cfg 1; old hosts call a node by its function, newer ones by ``execute``."""
    guide, sampler = CFGGuider(), SamplerCustomAdvanced()
    guider = (getattr(guide, "get_guider", None) or guide.execute)(model, cond, conditioning("flow", 9), 1.0)[0]
    sample = getattr(sampler, "sample", None) or sampler.execute
    return sample(start, guider, comfy.samplers.sampler_object("euler"), sigmas, latent)[0]["samples"]


@pytest.mark.parametrize("last", [None, 0.7])
@pytest.mark.parametrize("name", NODES)
@torch.inference_mode()
def test_the_nodes_noise_over_its_empty_latent_rebuilds(pack, flow, previews, name, last):
    """From the model's own levels and from wired ones that end below pure noise; over the image's own latent too."""
    module, widgets = NODES[name]
    cond, latent = conditioning("flow"), {"samples": noise(3, 16, 8, 12, seed=2)}
    wired = None if last is None else torch.tensor([last, 0.6, 0.4, 0.2, 0.0])
    node = getattr(pack(f"nodes.{module}"), name)
    inversion, empty, sigmas, start, plot, report = node.execute(
        model=flow, positive=cond, latent=latent, steps=STEPS, sigmas=wired, **widgets
    ).args
    assert float(sigmas[0]) == pytest.approx(last or 1.0) and float(sigmas[-1]) == 0 and len(sigmas) == STEPS + 1
    assert empty["samples"].shape == latent["samples"].shape and not empty["samples"].any()
    assert f"{STEPS} steps, 3 image(s)" in report and plot.ndim == 4 and list(previews.glob("*.png"))

    rebuilt = stock(flow, cond, start, sigmas, empty)
    torch.testing.assert_close(stock(flow, cond, start, sigmas, latent), rebuilt, rtol=1e-4, atol=1e-4)
    replay = pack("core.sampling").reconstruct
    ours = pack("nodes.host.sampling").run(
        flow, latent, {"positive": cond}, lambda s: replay(s.denoiser, inversion, s.conds["positive"])
    )
    torch.testing.assert_close(
        rebuilt, pack("nodes.host.latents").latent_from_model(flow, ours)["samples"], rtol=1e-4, atol=1e-4
    )
    error = pack("nodes.host.latents").latent_to_model(flow, {"samples": rebuilt}) - pack(
        "nodes.host.latents"
    ).latent_to_model(flow, latent)
    if (
        name == "SPDInvInversion"
    ):  # a residual of r (mean square) misses the level before by sqrt(r) rms; the misses add up
        assert float(error.square().mean().sqrt()) < 2 * STEPS * TOLERANCE**0.5
    else:  # whitened noise rebuilds only nearly, but it is the image
        assert error.norm() < 0.5 * latent["samples"].norm()
