"""The Phi-4 decoder as plain functions over plain trees of arrays."""
