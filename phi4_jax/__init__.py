"""Phi-4 (arXiv:2412.08905) re-implemented for JAX: the nouns of the project.

Sub-packages are rooms with one-way imports (see CONTRIBUTING.md); nothing here
reads gin or the command line. Importing this package imports no heavy library.
"""

__version__ = "0.1.0"
