"""The shape of OpenAI's completions API: requests are checked by hand, answers and errors built as plain JSON.

Unknown fields are refused, and known ones that we do not implement are taken only with the value that changes nothing:
an answer is never silently another than was asked for. No message repeats what a client sent.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tessera.serve.engine import Completion
from tessera.serve.settings import ServeSettings

NEUTRAL: Mapping[str, Sequence[Any]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "logprobs": (None,),
    "suffix": (None,),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "stream_options": (None,),
}
"""Fields of the API that are not implemented, with the values that ask for nothing; `user` may be anything."""

Stop = Annotated[str, Field(min_length=1, max_length=256)]


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(
        self, status: int, message: str, *, kind: str = "invalid_request_error", param: str | None = None,
        code: str | None = None, headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class CompletionRequest(BaseModel):
    """The fields that are implemented; types are strict, so that "0.5" is no temperature."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    prompt: str | list[str]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    user: Any = None

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    def options(self, settings: ServeSettings) -> dict[str, Any]:
        """The arguments of `Engine.prepare`."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return {
            "max_tokens": self.max_tokens,
            "default_tokens": settings.max_tokens,
            "temperature": settings.temperature if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "seed": self.seed,
            "stop": stop,
        }


@dataclass(frozen=True)
class ServedModel:
    """Which model answers."""

    name: str
    version: int
    weights_sha256: str
    created: int
    """Seconds since 1970."""

    def answers_to(self, asked: str | None) -> bool:
        """Whether a request's `model` means this one; none at all does."""
        return asked in (None, self.name, f"{self.name}/{self.version}", f"models:/{self.name}/{self.version}")


def parse(body: bytes, *, settings: ServeSettings) -> CompletionRequest:
    """A request body as a checked request.

    Raises:
        Refused: 400, naming the field.
    """
    try:
        values = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refused(400, 'the body is not JSON; send an object such as {"prompt": "..."}') from None
    if not isinstance(values, dict):
        raise Refused(400, f"the body is a JSON {type(values).__name__}, wanted an object with a prompt")
    for field, neutral in NEUTRAL.items():
        if values.pop(field, None) not in neutral:
            raise Refused(400, f"{field} is not implemented; leave it out", param=field)
    try:
        request = CompletionRequest.model_validate(values)
    except ValidationError as error:
        raise _explained(error) from None
    if not 1 <= len(request.prompts) <= settings.max_prompts:
        message = f"prompt: found {len(request.prompts)} prompts, wanted 1 to {settings.max_prompts}"
        raise Refused(400, message, param="prompt")
    return request


def completion_body(
    answers: Sequence[Completion], *, request_id: str, created: int, model: ServedModel
) -> dict[str, Any]:
    """The answer to a request that does not stream."""
    prompt_tokens = sum(answer.prompt_tokens for answer in answers)
    completion_tokens = sum(answer.completion_tokens for answer in answers)
    return {
        **_head(request_id=request_id, created=created, model=model),
        "choices": [
            _choice(answer.text, index=index, finish_reason=answer.finish_reason)
            for index, answer in enumerate(answers)
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def event(item: str | Completion, *, index: int, request_id: str, created: int, model: ServedModel) -> str:
    """One server-sent event: a piece of text, or at the end of a prompt's answer its finish reason."""
    text, reason = (item, None) if isinstance(item, str) else ("", item.finish_reason)
    head = _head(request_id=request_id, created=created, model=model)
    body = {**head, "choices": [_choice(text, index=index, finish_reason=reason)]}
    return f"data: {json.dumps(body)}\n\n"


def model_list(model: ServedModel) -> dict[str, Any]:
    """The answer to `/v1/models`."""
    entry = {"id": model.name, "object": "model", "created": model.created, "owned_by": "tessera"}
    return {"object": "list", "data": [entry]}


def _head(*, request_id: str, created: int, model: ServedModel) -> dict[str, Any]:
    return {
        "id": request_id,
        "object": "text_completion",
        "created": created,
        "model": model.name,
        "system_fingerprint": f"{model.name}/{model.version}-{model.weights_sha256[:12]}",
    }


def _choice(text: str, *, index: int, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def _explained(error: ValidationError) -> Refused:
    """The first fault, with its field; pydantic's message names types and limits, never the value."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    known = CompletionRequest.model_fields
    field = str(fault["loc"][0]) if fault["loc"] else ""
    if fault["type"] == "extra_forbidden":
        return Refused(400, f"the body has an unknown field; known are {', '.join([*known, *NEUTRAL])}")
    if fault["type"] == "missing":
        return Refused(400, f"{field} is missing; give it a value", param=field)
    if field == "prompt":
        return Refused(400, "prompt: wanted a string or a list of strings", param=field)
    if field == "stop":
        return Refused(400, "stop: wanted a string or up to 4, each of 1 to 256 characters", param=field)
    return Refused(400, f"{field}: {fault['msg'][0].lower()}{fault['msg'][1:]}", param=field)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
