"""Measures a sampler on tasks with checkable answers, with honest intervals."""
