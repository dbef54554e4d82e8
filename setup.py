"""Package metadata. Floors and ceilings are versions the test suite has passed on (see docs/design_log/)."""

import pathlib

from setuptools import find_packages, setup

RUN = [
    "absl-py>=2.3,<3",
    "array-record>=0.8,<1",
    "chex>=0.1.90,<0.2",
    "flax>=0.12.8,<0.13",
    "grain>=0.2.18,<0.3",
    "importlib_resources>=6.5,<8",  # tensorflow-datasets imports it and does not ask for it
    "jax>=0.10.2,<0.13",
    "matplotlib>=3.10,<4",
    "ml_collections>=1.1,<2",
    "numpy>=2.1,<3",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "pyarrow>=20,<27",
    "rich>=14,<16",
    "sacrebleu>=2.5,<3",
    "scikit-learn>=1.6,<2",
    "sentencepiece>=0.2.1,<0.3",
    "seqeval>=1.2.2,<2",
    "tensorboardX>=2.6.4,<3",
    "tensorflow-datasets>=4.9.10,<5",
    "tokenizers>=0.23.1,<0.24",
    "zstandard>=0.23,<1",
]

EXTRAS = {
    "tpu": ["jax[tpu]>=0.10.2,<0.13"],
    "cuda": ["jax[cuda12]>=0.10.2,<0.13"],
    "hf": ["huggingface_hub>=1,<3", "jinja2>=3.1.6,<4", "safetensors>=0.8,<1"],
    "test": [
        "ipykernel>=7.4,<8",  # the notebooks of colab/ run in the tests
        "nbclient>=0.11,<0.12",
        "nbformat>=5.11,<6",
        "pytest>=9,<10",
        "pytest-xdist>=3.8,<4",
        # The reference of the parity tests. Its wheel for Python 3.12 brings gigabytes of GPU packages,
        # so it is asked for on 3.11 only; where it is missing the parity tests say so and are skipped.
        'torch==2.13.0; python_version < "3.12"',
        'transformers>=5.23,<6; python_version < "3.12"',
        'peft>=0.21,<0.22; python_version < "3.12"',
    ],
    "docs": ["furo>=2025.7,<2027", "myst-parser>=5,<6", "sphinx>=9,<10"],  # `make docs`
    "dev": ["pyright[nodejs]>=1.1.400,<2", "ruff>=0.17,<0.18"],
}

setup(
    name="jaxnlp",
    version="0.1.0",
    description="A JAX research codebase for natural language processing, made to be read and forked",
    long_description=pathlib.Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["jaxnlp", "jaxnlp.*"]),
    python_requires=">=3.11",
    install_requires=RUN,
    extras_require=EXTRAS,
)
