"""Image classifiers as guides: what tells CASO whether an attribute is there. Loaded from many kinds of file, or
trained."""
