"""DeltaEdit (Lyu et al.): CLIP differences become style directions, for a GAN and for a diffusion model."""
