"""Settings of the comb search; see comb_search.py for what they do."""

import dataclasses

from phi4_jax.common.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class CombConfig:
  """How pivotal tokens are screened, confirmed and selected.

  Attributes:
    gamma0: what is claimed: exported tokens have effects above this. Less than the gap.
    alpha: bound of the expected share of exported tokens for which that is wrong.
  """

  gamma0: float = 0.1
  alpha: float = 0.05

  def __post_init__(self):
    for name in ("gamma0", "alpha"):
      if not 0 < getattr(self, name) < 1:
        raise ConfigError(
          f"CombConfig.{name} ({getattr(self, name)}) must lie between 0 and 1."
        )
