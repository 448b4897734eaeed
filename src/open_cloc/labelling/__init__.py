"""Labelling region-text data as the paper's VESL pipeline does: re-caption, phrases, detect, filter, write.

`pipeline` is the whole of it on one page, `output` the folder of a run, `actors` all that says Ray; every
stage is a class of its own that works without Ray.
"""
