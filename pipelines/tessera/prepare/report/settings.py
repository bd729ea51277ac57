"""What the report of prepare shows."""

from pydantic import Field

from tessera.config import EXECUTION, Section


class ReportSettings(Section):
    """The page that prepare writes; its counts are kept as a table whatever is set here, and hold no text."""

    page: bool = Field(True, json_schema_extra=EXECUTION)
    """Write `reports/prepare.html` and keep it, without samples, in MLflow."""
    show_text: bool = Field(False, json_schema_extra=EXECUTION)
    """Show the beginnings of some documents on the page in the home, as they are after masking. The page that MLflow
    keeps never has them."""
    samples: int = Field(3, ge=0, le=100, json_schema_extra=EXECUTION)
    """Documents of each source that are shown with `show_text`."""
