"""Where things lie: the home folder of one organisation's tables, shards, runs and models.

Everything a record names inside the home is relative to it, so that a home can be moved or copied whole.
"""

import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_HOME = "lakehouse"


@dataclass(frozen=True)
class Home:
    """The layout of a home; nothing is created until it is written."""

    root: Path

    @classmethod
    def from_environment(cls) -> "Home":
        """`TESSERA_HOME`, or `./lakehouse`."""
        return cls(Path(os.environ.get("TESSERA_HOME") or DEFAULT_HOME).absolute())

    @property
    def tables(self) -> Path:
        return self.root / "tables"

    @property
    def documents(self) -> Path:
        return self.tables / "documents"

    @property
    def ledger(self) -> Path:
        return self.tables / "ledger"

    @property
    def evaluations(self) -> Path:
        return self.tables / "evaluations"

    @property
    def answers(self) -> Path:
        return self.tables / "answers"

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    @property
    def tokenizers(self) -> Path:
        return self.root / "tokenizers"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def spill(self) -> Path:
        return self.root / "spark"

    @property
    def spill_lock(self) -> Path:
        """Held by every process with a Spark session that spills here."""
        return self.spill / ".lock"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def models(self) -> Path:
        """Models fetched from an MLflow server; may be deleted at any time."""
        return self.cache / "models"

    @property
    def mlflow_database(self) -> Path:
        return self.root / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        return self.root / "mlartifacts"

    def relative(self, path: Path) -> str:
        """`path` as records hold it: relative to the home when it lies inside, else as it is."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.as_posix()

    def resolve(self, recorded: str) -> Path:
        """The path that a record means: the inverse of `relative`."""
        return self.root / recorded
