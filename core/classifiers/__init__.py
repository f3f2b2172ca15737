"""Image classifiers, which tell CASO whether an attribute is there: loaded from many kinds of file, or trained.

``base`` is the one shape in which all are used. ``loaders`` reads and saves; ``convnet`` (the pack's own network),
``transformers_folder`` and ``pickles`` know one kind each. ``training`` trains on ``pictures``, changed by ``augment``.
"""
