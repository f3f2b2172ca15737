"""ELITE: a concept of one picture as a word and projections (Wei et al., ICCV 2023, arXiv 2302.13848)."""
