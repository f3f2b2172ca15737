"""Measures of pictures and of inverted noise, each a documented formula."""
