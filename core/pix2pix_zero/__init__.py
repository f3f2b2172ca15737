"""pix2pix-zero: regularised inversion, sentence directions, cross-attention guidance (Parmar et al. 2023, arXiv 2302.03027)."""
