"""What tests of remote samplers share: a table of five tokens, a sampler, branches."""

import numpy as np

from phi4_jax.common.sampler import Branch, SamplingLaw
from phi4_jax.sampling.remote import RemoteSampler, RemoteSamplerConfig
from tests.sampling.fake_endpoint import MODEL

LOGITS = np.log([0.35, 0.25, 0.2, 0.12, 0.08])
LAW = SamplingLaw(max_length=16)
PROBE = (1, 2, 0)
STOP = 4


def make_sampler(endpoint, law=LAW, stop_ids=(STOP,), decode=None, **kwargs):
  config = {
    "url": endpoint.url,
    "model": MODEL,
    "concurrency": 4,
    "max_retries": 2,
  } | kwargs
  return RemoteSampler(
    RemoteSamplerConfig(**config),
    law,
    stop_ids=stop_ids,
    seed=0,
    probe_ids=PROBE,
    decode=decode,
    first_pause=0.01,
  )


def branches(count, **kwargs):
  return [Branch(text=PROBE, position=3, key_path=(k,), **kwargs) for k in range(count)]
