"""pix2pix-zero (Parmar et al. 2023, arXiv 2302.03027): whitened inversion, sentence directions, guided edits."""
