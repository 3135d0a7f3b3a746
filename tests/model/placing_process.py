"""One of two processes that place a model on a mesh of eight devices together.

    python -m tests.model.placing_process FOLDER PORT NUMBER

Prints as JSON how many bytes of tensors it has read, and the digest of the whole.
"""

import json
import sys

import jax

from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.model.hf_weights import leaf_maps, place_params
from phi4_jax.model.safetensors_files import SafetensorsFolder
from phi4_jax.model.sharding import param_shardings
from phi4_jax.model.transformer import abstract_params
from phi4_jax.training.digest import params_digest
from tests.model.tiny import tiny_config


def main(folder: str, port: str, number: str) -> None:
  jax.config.update("jax_num_cpu_devices", 4)
  jax.distributed.initialize(f"localhost:{port}", 2, int(number))
  config = tiny_config(head_dim=6)
  mesh = make_mesh(MeshConfig(data=1, fsdp=8))
  shardings = param_shardings(mesh, abstract_params(config), config)
  with SafetensorsFolder(folder) as source:
    params = place_params(source, leaf_maps(config, "phi3"), shardings)
    report = {"bytes_read": source.num_bytes_read, "digest": params_digest(params)}
  print(json.dumps(report), flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
