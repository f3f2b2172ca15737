"""Image classifiers as guides: they tell CASO whether an attribute is there. Loaded from many files, or trained."""
