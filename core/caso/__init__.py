"""CASO: token vectors that a classifier taught, as edits (Chang et al., "Classifier-Guided Semantic Optimization").

``token_vectors`` says what a model must offer, ``embedding`` is the learned thing and its file, ``training`` learns it,
``editing`` applies it, ``analysis`` measures what the paper claims.
"""
