"""Cross-entropy straight from hidden states: the operation and its definition.

Files: `reference` (the definition, holds [B, T, V]), `chunked` (holds one chunk of
it at a time, which is the default).
"""

from kernels.cross_entropy.chunked import cross_entropy_from_hidden
from kernels.cross_entropy.reference import CrossEntropySums

__all__ = ["CrossEntropySums", "cross_entropy_from_hidden"]
