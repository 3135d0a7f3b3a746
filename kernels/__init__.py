"""Device code: operations that the model is made of, usable without phi4_jax.

Knows jax, numpy and array shapes; refuses to know models, configs and meshes.
An operation is a package. Its `__init__`
defines it in a few lines of plain JAX (the docstring), `reference` is that
definition as code, the other files are faster ways to the same numbers, and
`dispatch` says which one runs.
"""
