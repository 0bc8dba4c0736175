"""Ranks of single layers: a module's budget shared out over its blocks and components, once the pair is chosen.

HyDRA (`hydra.py`) and its rivals, one file each, have one interface: `allocate(probe, budget)` gives the rank of every
layer, at most as many trainable parameters as the uniform rank has, and within 0.5% of them where integers allow.
"""
