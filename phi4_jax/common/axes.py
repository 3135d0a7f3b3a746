"""Axis letters and array types used in every signature.

  B rows            T query positions   S key/cache positions
  D width           N query heads       K key-value heads     G = N / K
  H head width      F MLP width         V vocabulary          L layers
  A microbatches    P prefixes          R rollouts per prefix C answer choices

Shapes in signatures are jaxtyping strings made of these letters. They are
checked at run time in the tests only (tests/conftest.py installs the hook).
"""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Bool, Float, Int, UInt32

Array = jax.Array
# A nested dict of arrays whose leaves carry the Hugging Face names.
Params = Mapping[str, Any]

__all__ = ["Array", "Bool", "Float", "Int", "Params", "UInt32"]
