"""Settings of serving: the registered name decides the output, everything else how it is asked for."""

from typing import Annotated

from pydantic import Field, field_validator

from tessera.config import EXECUTION, Section
from tessera.registry import name_fault

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class ServeSettings(Section):
    """Under which name a model is registered, and how it answers."""

    model_name: str = "tessera-docs"
    """The registered model: letters, digits, `_`, `-`, and single `.` between them."""
    prompt: str = Field("Return the", min_length=1, json_schema_extra=EXECUTION)
    """What `tessera serve` without a port asks the model, once."""
    max_tokens: int = Field(64, ge=1, json_schema_extra=EXECUTION)
    """Tokens of an answer when a request names none."""
    temperature: float = Field(0.0, ge=0, le=2, json_schema_extra=EXECUTION)
    """Of an answer when a request names none; 0 is greedy."""
    host: str = Field("127.0.0.1", json_schema_extra=EXECUTION)
    """The address to listen on; any other than loopback asks for `api_key`."""
    port: Annotated[int, Field(ge=0, le=65535)] | None = Field(None, json_schema_extra=EXECUTION)
    """The port of the HTTP server, 0 for a free one; without it nothing listens."""
    api_key: str | None = Field(None, json_schema_extra=EXECUTION)
    """The bearer token that requests must carry, as `${env:NAME}`; none asks for no token."""
    max_body_bytes: int = Field(1_000_000, ge=1024, json_schema_extra=EXECUTION)
    """The largest request body."""
    max_requests: int = Field(32, ge=1, json_schema_extra=EXECUTION)
    """Requests that run or wait; one more is refused with 429. One runs at a time."""
    max_prompts: int = Field(16, ge=1, json_schema_extra=EXECUTION)
    """Prompts in one request."""
    read_seconds: float = Field(10.0, gt=0, json_schema_extra=EXECUTION)
    """A client that has not sent its body by then gets 408."""

    @field_validator("model_name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if fault := name_fault(name):
            raise ValueError(fault)
        return name

    @field_validator("api_key")
    @classmethod
    def _no_literal_secret(cls, api_key: str | None) -> str | None:
        if api_key is not None and not api_key.startswith("${env:"):
            raise ValueError("a secret stands in the configuration; write ${env:NAME} and export NAME")
        return api_key
