"""DeltaEdit (Lyu et al.): CLIP differences become directions of StyleGAN's style space, for a GAN and a diffusion model."""
