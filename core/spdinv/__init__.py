"""SPDInv: inversion whose every step is solved for its fixed point (Li et al., ECCV 2024, arXiv 2403.11105)."""
