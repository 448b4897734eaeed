"""CLOC as the eyes of a language model, in the paper's Ferret: image tokens, and a token for each region.

Any causal language model of transformers will do. `model` joins the two, `questions` makes refer-and-ground
data, `train` teaches, `evaluate` measures, and `compare` sets CLIP, CLOC and region tokens side by side.
"""
