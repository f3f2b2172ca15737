"""DeltaEdit (Lyu et al.): CLIP differences mapped to directions of StyleGAN's style space, for a GAN and for a diffusion model."""
