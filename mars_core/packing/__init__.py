"""Packed training: many rank pairs over one frozen backbone in one pass, each as if it were trained alone.

A *pack* is a list of runs (rank pair, seed) that share backbone and batch order. Runs are trained in
*adapter batches*: an adapter batch is one forward and backward pass through the model with the rows of its runs one
after another (run-major), so its width bounds the memory for activations.

| symbol | meaning | shape |
|---|---|---|
| M | runs in an adapter batch | |
| N | rows that one run sends through a linear layer (tokens or patches) | |
| W | frozen weight of the layer | (out, in) |
| A, B | adapter weights of one run; their product is scaled by alpha/r | (r, in), (out, r) |

What is shared, exactly: data and preprocessing, patch embedding, masks and positions, frozen weights. What is
left out, exactly: logits without a label, padding, gradients of frozen weights, and what the last layer would
compute for positions that no label reads.
"""
