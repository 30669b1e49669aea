"""The executor: weights, KV cache, paged attention and sampling of one model, driven by its scheduler's plans."""
