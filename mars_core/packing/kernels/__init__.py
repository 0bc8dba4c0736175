"""What a packed forward pass computes in its own way: linear layers, attention, norm, rotary embedding, gate."""
