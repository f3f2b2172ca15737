"""What the nodes tell of an inversion: its figures, read off one made up by hand."""

import pytest
import torch

from semantic_editing.tools import host_stand_in

host_stand_in.load_pack()
reports = host_stand_in.module("nodes.common.reports")


@pytest.fixture
def inversion():
    """Two images, two steps: residuals 1e-6 to 4e-6, 1 + 3 and 1 + 5 forwards, 2 backwards on the second image."""
    identity = host_stand_in.module("core.denoiser").ModelIdentity("sd1", 4, "eps", (1.0,))
    latents = torch.full((3, 2, 4, 8, 8), 5.0)
    latents[2, 1] = -5.0  # at sigma sqrt(24) the unit-variance noise is 1 and -1
    return host_stand_in.module("core.inversion").Inversion(
        latents,
        torch.tensor([0.02, 0.5, 24**0.5]),
        torch.tensor([[1e-6, 2e-6], [4e-6, 3e-6]]),
        torch.tensor([[1, 1], [3, 5]]),
        torch.tensor([[0, 0], [0, 2]]),
        identity,
        "spdinv/auto",
    )


def test_summary(inversion):
    first, method, cost, noise, residual, way_back = reports.inversion_report(inversion).splitlines()
    assert (
        first.startswith("Rebuilds at about ") and "(lowest of 2 images, number " in first and "spdinv/auto" in method
    )
    assert "euler" in way_back and "cfg 1;" in way_back
    assert "5 forward, 1 backward" in cost
    assert "0.000, standard deviation 1.00" in noise
    assert "worst 4.00e-06 (step 2), mean 2.50e-06" in residual


def test_a_line_for_each_step(inversion):
    assert reports.step_report(inversion).strip().splitlines() == [
        "step 1: sigma 0.5, residual 2.0e-06, 1 u",
        "step 2: sigma 4.9, residual 4.0e-06, 4 u",
    ]


def test_residuals_that_were_not_measured_are_not_told(inversion):
    inversion.residuals.fill_(float("nan"))
    report = reports.inversion_report(inversion)
    assert reports.step_report(inversion) == "" and "residual" not in report and "dB" not in report


def test_a_checked_figure_takes_the_place_of_the_estimate(inversion):
    first, *rest = reports.inversion_report(inversion, "Rebuilds at 61 dB: you will not see a difference.").splitlines()
    assert first.startswith("Rebuilds at 61 dB") and not any("about" in line for line in rest)


def test_regularisation_is_told_before_and_after(inversion):
    object.__setattr__(inversion, "info", {"correlation_before": [0.2, 0.4], "correlation_after": [0.1, 0.0]})
    assert (
        "correlation of the predicted noise, mean over steps: +0.300 before, +0.050 after"
        in reports.inversion_report(inversion)
    )


def test_cost_of_an_edit(inversion):
    evaluations = host_stand_in.module("core.denoiser").Evaluations(16, 4)
    assert "8 forward, 2 backward (4.0 + 1.0 per step)" in reports.cost_report(evaluations, inversion)


#: Before a test refuses what is none.
IS_SENTENCE = host_stand_in.module("nodes.common.reports").is_sentence


def test_the_first_sentence_of_a_report_is_written_on_the_node(monkeypatch):
    """Figures are not: they are for those who open the report."""
    reports, written = host_stand_in.module("nodes.common.reports"), []
    monkeypatch.setattr(reports, "progress_text", written.append)
    assert reports.shown("8 % of the picture changed.\nPSNR, dB 31.0") == {
        "text": ("8 % of the picture changed.\nPSNR, dB 31.0",)
    }
    monkeypatch.setattr(reports, "is_sentence", IS_SENTENCE)  # tests are stricter
    reports.shown("1 image(s), 50 steps\nnetwork evaluations: 200.")
    assert written == ["8 % of the picture changed."]
