"""Where in an image an edit belongs (Lin et al. 2024, arXiv 2311.16432), and the editors that try a box."""
