"""Layer-wise ranks: probe the chosen pair's layers, share its budget out over them, and train the result."""
