"""Draws completions from a model: the filtered law, and a batched sampler."""
