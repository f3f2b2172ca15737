"""The generator's nodes inside the host: under inference mode, through its device management, from its folders."""

import comfy.model_management as mm
import folder_paths
import pytest
import torch


@pytest.fixture
def generator_file(pack, tmp_path, monkeypatch):
    """A small random generator in models/stylegan2, as the PyTorch port saves it."""
    network = pack("core.deltaedit.stylegan2").StyleGAN2
    home = tmp_path / "stylegan2"
    home.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = network(16, {4: 6, 8: 5, 16: 4}, 7, 2)
        for index in range(5):
            (made.conv1, *made.convs)[index].noise.weight.data.fill_(0.3)
    torch.save({"g_ema": made.state_dict(), "latent_avg": torch.zeros(7)}, home / "faces.pt")
    pack("nodes.host.folders").register_folders()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "stylegan2", ([str(home)], {".pt", ".safetensors"}))
    folder_paths.filename_list_cache.clear()
    return made


def test_from_file_to_picture_and_back_into_a_file(pack, generator_file):
    nodes = pack("nodes.deltaedit.generator")
    with torch.inference_mode():
        stylegan2, report = nodes.StyleGAN2Loader.execute("faces.pt").args
        assert "\nfaces.pt: 16 x 16 pixels, W of 7" in report and "mean of W" not in report
        images, code = nodes.StyleGAN2Generate.execute(stylegan2, 3, 3, 0.7).args
        again = nodes.DecodeStyleCode.execute(stylegan2, code, -1).args[0]
        other = nodes.DecodeStyleCode.execute(stylegan2, code, 8).args[0]
        mixed = nodes.StyleCodeMix.execute(
            code.select(slice(1)), code.select(slice(1, 3)), 1.0, 3, 1.0, 1.0, 0.0, True
        ).args[0]
        way = nodes.DecodeStyleCode.execute(stylegan2, mixed, -1).args[0]
        saved = nodes.SaveStyleGAN2.execute(stylegan2, "converted", False, False).args[0]
        folder_paths.filename_list_cache.clear()
        converted = nodes.StyleGAN2Loader.execute(saved).args[0]
        same = nodes.DecodeStyleCode.execute(converted, code, -1).args[0]
    assert saved == "converted.safetensors" and images.device.type == code.convs.device.type == "cpu"
    assert images.shape == (3, 16, 16, 3) and torch.equal(again, images) and torch.equal(same, images)
    assert not torch.equal(other, images)
    torch.testing.assert_close(way[[0, 3]], images[[0, 0]], rtol=0, atol=1e-5)
    torch.testing.assert_close(way[[2, 5]], images[[1, 2]], rtol=0, atol=1e-5)  # 16 pixels have nothing fine
    expected = generator_file(code.w_plus.clone()).add(1).div(2).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


def test_it_survives_eviction_and_takes_gradients(pack, generator_file):
    nodes, gradients = pack("nodes.deltaedit.generator"), pack("nodes.host.gradients")
    with torch.inference_mode():
        stylegan2 = nodes.StyleGAN2Loader.execute("faces.pt").args[0]
        images, code = nodes.StyleGAN2Generate.execute(stylegan2, 3, 1, 1.0).args
        mm.unload_all_models()
        assert torch.equal(nodes.DecodeStyleCode.execute(stylegan2, code, -1).args[0], images)
        with gradients.gradient_scope(True):
            network = stylegan2.loaded()
            rows = code.w_plus.clone().requires_grad_()
            network(rows).square().mean().backward()
    assert rows.grad.abs().min() > 0 and all(p.grad is None for p in network.parameters())


def test_cancel_ends_a_batch(pack, generator_file, monkeypatch):
    nodes = pack("nodes.deltaedit.generator")
    with torch.inference_mode():
        stylegan2 = nodes.StyleGAN2Loader.execute("faces.pt").args[0]
        monkeypatch.setattr(nodes, "PIXELS", 1)
        drawn, draw = [], stylegan2.network.synthesize

        def synthesize(code, noise):
            drawn.append(len(code))
            if len(drawn) == 2:
                mm.interrupt_current_processing()
            return draw(code, noise)

        monkeypatch.setattr(stylegan2.network, "synthesize", synthesize)
        with pytest.raises(mm.InterruptProcessingException):
            nodes.StyleGAN2Generate.execute(stylegan2, 0, 5, 0.7)
    assert drawn == [1, 1]


def test_the_list_and_what_is_not_there(pack, generator_file):
    nodes = pack("nodes.deltaedit.generator")
    slot = nodes.StyleGAN2Loader.define_schema().inputs[0]
    assert "faces.pt" in slot.options
    with pytest.raises(pack("core.errors").EditingError, match="is not in ComfyUI's models/stylegan2 folder"):
        nodes.StyleGAN2Loader.execute("../faces.pt")
