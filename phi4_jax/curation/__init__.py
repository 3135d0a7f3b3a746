"""Judges documents that exist: what is kept, and why the rest is not."""
