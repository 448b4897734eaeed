"""Labelling region-text data (METHOD: VESL): re-caption, phrases, detect, filter, write; `open-cloc label`.

`pipeline` runs the stages on Ray Data; every stage is a class of its own that works without Ray.
"""
