"""The exceptions of Tessera: what went wrong, in one sentence a class.

A message says what was found, what was wanted and what to do next. It holds ids, counts and hashes, never row text.
The command line prints the message as one line and leaves with `exit_status`.
"""


class TesseraError(Exception):
    """The root: something that Tessera understands went wrong."""

    exit_status = 1


class UserError(TesseraError):
    """What the user gave is wrong, and only the user can mend it."""

    exit_status = 2


class ConfigError(UserError):
    """A configuration file or `--set` has an unknown key, a wrong type or an impossible value."""


class SourceError(UserError):
    """A source table cannot be read as asked: absent, no such version, no such column, duplicate keys, no rows."""


class TokenizerError(UserError):
    """A tokenizer folder is incomplete or unfit."""


class ShardSetError(UserError):
    """A shard set cannot serve what was asked: absent, too small, of another version than the state names."""


class FormatError(UserError):
    """Something stored was written by a newer Tessera, or by one too old to be read."""


class ModelError(UserError):
    """A model folder, run or registered model is absent or unfit."""


class PromptError(UserError):
    """A completion request cannot be answered as asked."""


class GateRefused(UserError):
    """A model version may not become champion: its gate did not pass it, or not against the champion of now."""


class SetupError(TesseraError):
    """The machine lacks something: Java, the Delta jars, a library."""


class TrackingError(TesseraError):
    """MLflow, or the database that it keeps runs and models in, cannot be used now."""


class ShardingFailed(TesseraError):
    """The shards do not hold what the documents gave: nothing was published."""


class ForgetFailed(TesseraError):
    """Text of erased rows is left somewhere, or the search for it cannot be trusted.

    `result` says what was found and done, where it came so far.
    """

    def __init__(self, message: str, *, result: object = None) -> None:
        super().__init__(message)
        self.result = result


class ReproductionFailed(TesseraError):
    """A model version was rebuilt from its record, and something other came out."""


class StorageFull(TesseraError):
    """A file could not be written: no room, or a limit; nothing of it stays under its name."""


class PublishingFailed(TesseraError):
    """A publishing commit could not be written, and nobody else's is there: nothing was published."""


class Conflict(TesseraError):
    """Another writer published first; nothing of ours was published."""


class CorruptShard(TesseraError):
    """A shard file is missing, or differs from its manifest in size or hash."""


class CorruptCheckpoint(TesseraError):
    """A checkpoint folder is incomplete, or a file in it differs from its record."""


class TrainingFailed(TesseraError):
    """The ranks ended without the record that says the run is complete."""


class EvaluationFailed(TesseraError):
    """The ranks of an evaluation ended without all outcomes."""


class Superseded(TesseraError):
    """A newer attempt owns the run folder; this one must stop."""
