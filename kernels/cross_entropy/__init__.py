"""Cross-entropy straight from hidden states: the operation and its definition.

    logits = (hidden @ head).astype(float32)                          # [B, T, V]
    log_z = logsumexp(logits, axis=-1)
    loss = log_z - take_along_axis(logits, targets) + z_loss * log_z**2
    loss_sum = sum(weights * loss)

Files: `reference` (the definition, holds [B, T, V]), `chunked` (holds one chunk of
it at a time, which is the default), `sharded` (the same on a mesh, with the head
gathered once).
"""

from kernels.cross_entropy.chunked import cross_entropy_from_hidden
from kernels.cross_entropy.reference import CrossEntropySums

__all__ = ["CrossEntropySums", "cross_entropy_from_hidden"]
