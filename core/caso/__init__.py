"""CASO: edits by token vectors that a classifier taught (Chang et al., "Classifier-Guided Semantic Optimization").

``embedding`` is the learned thing and its file, with ``textual_inversion`` for the layouts of other programs.
``settings`` says what a training is told and reports, ``schedule`` which samples it takes, ``training`` learns,
``training_state`` stops and resumes it, ``training_report`` shows it. ``editing`` applies embeddings; ``analysis``
measures what the paper claims. What CASO needs of a model stands in ``core/token_vectors.py``.
"""
