"""A model behind HTTP: JSON in, JSON out, and a page to try it."""
