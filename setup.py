"""Package metadata of phi4_jax: what it needs to run, and what each extra adds.

`requirements.lock` pins the whole set (core, data, curate, beam and dev) with hashes;
it is made from this file by `make lock`.
"""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
  "jax>=0.10.1,<0.12",
  "flax>=0.12.5,<0.13",
  "optax>=0.2.8,<0.3",
  "orbax-checkpoint>=0.12.5,<0.13",
  "grain>=0.2.18,<0.3",
  "array-record>=0.8",
  "sentencepiece==0.2.2",  # 0.2.3 needs a protobuf that Beam and seqio refuse
  "tokenizers>=0.22",  # tokenizer.json
  "jinja2>=3.1",  # a folder's own chat template, to compare with ours
  "safetensors>=0.6",
  "gguf>=0.17",
  "gin-config==0.5.0",
  "numpy>=2.0",
  "jaxtyping>=0.3",
  "scipy>=1.14",
  "tensorboardX>=2.6",  # writes event files without TensorFlow
  "matplotlib>=3.9",
  "fsspec>=2026.1",  # documents on GCS and S3, compressed files
  "zstandard>=0.25",
  "math-verify>=0.9,<0.10",  # equality of mathematical answers, in a process of its own
  "antlr4-python3-runtime==4.11.1",  # the version that lm-eval wants, too
]

EXTRAS = {
  # Offline data preparation. tensorflow-text needs the distribution named
  # tensorflow (tensorflow-cpu does not satisfy it).
  "data": [
    "seqio>=0.0.20",
    "tensorflow-datasets>=4.9.10",
    "tensorflow>=2.21,<2.22",
    "tensorflow-text>=2.21,<2.22",
    "protobuf>=6.33,<7",  # what sentencepiece 0.2.2 and Beam were generated for
    "pyarrow>=24,<26",  # Parquet; Beam refuses 26
  ],
  # Raw documents to kept ones: text out of files, languages, near-duplicates.
  "curate": [
    "trafilatura>=2.3,<3",
    "lxml>=6",
    "pylatexenc>=2.10,<3",
    "pypdfium2>=5",
    "mammoth>=1.11",
    "py3langid>=0.4,<0.5",
    "rensa>=0.5,<0.6",
  ],
  # The same steps over many machines.
  "beam": ["apache-beam>=2.77,<2.78"],
  "tpu": ["jax[tpu]>=0.10.1,<0.12"],
  "cuda12": ["jax[cuda12]>=0.10.1,<0.12"],
  # Peers for benchmarks and for making goldens.
  "bench": [
    "torch==2.13.0",
    "transformers>=5.0",
    "trl>=0.20",
    "peft>=0.17",
    "accelerate",
    "tiktoken>=0.9",
    "gguf>=0.17",
    # Near-duplicates. datatrove needs the two after it and does not say so.
    "datatrove>=0.10",
    "regex",
    "xxhash<4",
    "datasketch>=2",
    "rensa>=0.5,<0.6",
  ],
  "dev": [
    # Compiles for real TPU topologies on a CPU: `phi4 plan`, `python -m kernels.check`.
    "jax[tpu]>=0.10.1,<0.12; sys_platform == 'linux'",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "beartype>=0.20",
    "hypothesis>=6",
    "ruff>=0.14",
    "pyright[nodejs]>=1.1.400",
    "pre-commit>=4",
    "tensorboard>=2.20",
    "setuptools>=77",
    "wheel",
  ],
}

setup(
  name="phi4_jax",
  version="0.1.0",
  description="Phi-4 in JAX: pretraining, fine-tuning and Pivotal Token Search",
  long_description=(Path(__file__).parent / "README.md").read_text("utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(
    include=["phi4_jax*", "experiments*", "kernels*", "benchmarks*"]
  ),
  package_data={"experiments.reporting": ["*.css", "*.js"]},
  install_requires=CORE,
  extras_require=EXTRAS,
  entry_points={"console_scripts": ["phi4=experiments.cli:main"]},
)
