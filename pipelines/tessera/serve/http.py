"""The HTTP server: /v1/completions in OpenAI's shape, /v1/models and /health, on loopback unless a key protects it.

One process, one model, one request at a time (see `engine`), others wait in a bounded queue. Errors are OpenAI's error
objects. The log has a line a request: method, path, status, time, token counts; never a prompt or an answer.
"""

import asyncio
import hmac
import logging
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from tessera.config import resolve_secret
from tessera.errors import ConfigError, PromptError, UserError
from tessera.serve import protocol
from tessera.serve.engine import Completion, Engine
from tessera.serve.protocol import Refused, ServedModel
from tessera.serve.queue import Full, Place, Queue
from tessera.serve.settings import LOOPBACK, ServeSettings

LOG = logging.getLogger("tessera.serve")
PATHS = ("/v1/completions", "/v1/models", "/health")
DRAINED_BYTES = 64 * 2**20
"""Of a body that is too large so much is read and thrown away, so that the client reads our answer."""


def serve_http(
    engine: Engine,
    *,
    settings: ServeSettings,
    info: ServedModel,
    port: int | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Answers until SIGINT or SIGTERM.

    Args:
        port: instead of `settings.port`; 0 takes a free one.
        announce: gets one line with the address once the port is ours.

    Raises:
        UserError: the port is taken, or the address is not this machine's.
        ConfigError: an address other than loopback without `serve.api_key`.
    """
    app = application(engine, settings=settings, info=info)
    _log_to_stderr()
    wanted = port if port is not None else settings.port or 0
    with bind(settings.host, port=wanted) as listener:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        announce(
            f"{info.name} version {info.version} answers on http://{host}:{listener.getsockname()[1]}"
            "/v1/completions; Ctrl-C stops it"
        )
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=5, server_header=False
        )
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def bind(host: str, *, port: int) -> socket.socket:
    """A socket on this address and port.

    Raises:
        UserError: it cannot be had.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UserError(
            f"{host}:{port} cannot be listened on ({error.strerror}); give another --port, or 0 for a free one"
        ) from None
    return listener


def application(engine: Engine, *, settings: ServeSettings, info: ServedModel) -> FastAPI:
    """The routes over one engine.

    Raises:
        ConfigError: the address is open to others and no key protects it.
    """
    key = resolve_secret(settings.api_key) if settings.api_key else None
    if settings.host not in LOOPBACK and not key:
        raise ConfigError(
            f"serve.host is {settings.host}, which others can reach; set serve.api_key: ${{env:NAME}} or use 127.0.0.1"
        )
    app = FastAPI(title="Tessera", docs_url=None, redoc_url=None, openapi_url=None)
    queue = Queue(engine, max_requests=settings.max_requests)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_middleware(_Log)

    @app.get("/health")
    async def health(request: Request) -> dict[str, Any]:
        _check_caller(request, settings=settings, key=None)
        return {
            "status": "ok",
            "ready": True,
            "model": info.name,
            "version": info.version,
            "weights_sha256": info.weights_sha256,
            "requests": queue.num_requests,
        }

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        _check_caller(request, settings=settings, key=key)
        return protocol.model_list(info)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        _check_caller(request, settings=settings, key=key)
        asked = protocol.parse(await _read(request, settings=settings), settings=settings)
        if not info.answers_to(asked.model):
            raise Refused(404, f"this server has one model: {info.name}", param="model", code="model_not_found")
        try:
            place = queue.admit()
        except Full:
            message = f"{queue.max_requests} requests run or wait already; try again later"
            raise Refused(429, message, kind="overloaded", code="overloaded", headers={"Retry-After": "1"}) from None
        handed_over = False
        try:
            options = asked.options(settings)
            prompts = await asyncio.to_thread(lambda: [engine.prepare(prompt, **options) for prompt in asked.prompts])
            head: dict[str, Any] = {
                "request_id": f"cmpl-{uuid.uuid4().hex}",
                "created": int(time.time()),
                "model": info,
            }
            if asked.stream:
                handed_over = True
                return StreamingResponse(_events(place, prompts, head), media_type="text/event-stream")
            answers = await _answers(place, prompts, request)
            request.state.tokens = sum(answer.completion_tokens for answer in answers)
            return JSONResponse(protocol.completion_body(answers, **head))
        except PromptError as error:
            raise Refused(400, str(error), param=_param_of(str(error))) from None
        finally:
            if not handed_over:
                place.release()

    return app


class _Log:
    """One line a request, and 500 instead of a traceback: what an exception says may hold a prompt."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            LOG.error("request failed: %s", type(error).__name__)
            if not status:
                failed = Refused(500, "the server failed; its log names the error", kind="server_error")
                await JSONResponse(failed.body, status_code=500)(scope, receive, noted)
        path = scope["path"] if scope["path"] in PATHS else "-"
        tokens = scope.get("state", {}).get("tokens", 0)
        LOG.info("%s %s %d %.3f s %d tokens", scope["method"], path, status, time.perf_counter() - began, tokens)


def _check_caller(request: Request, *, settings: ServeSettings, key: str | None) -> None:
    """The key, and on loopback the Host header: a web page must not reach us through a name of its own."""
    host = request.headers.get("host", "").rsplit("@")[-1]
    name = host[1:].split("]")[0] if host.startswith("[") else host.split(":")[0]
    if settings.host in LOOPBACK and name not in LOOPBACK:
        raise Refused(421, f"this server is {settings.host}; ask for it by that name")
    if key is not None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), key.encode()):
            raise Refused(401, "wanted the header Authorization: Bearer KEY with this server's key", code="invalid_key")


async def _read(request: Request, *, settings: ServeSettings) -> bytes:
    """The body; 415 when it is not declared as JSON, 413 when it is too large, 408 when it does not come."""
    declared = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if declared != "application/json":
        raise Refused(415, "wanted the header Content-Type: application/json")
    parts, size = [], 0
    try:
        async with asyncio.timeout(settings.read_seconds):
            async for part in request.stream():
                size += len(part)
                if size <= settings.max_body_bytes:
                    parts.append(part)
                elif size > DRAINED_BYTES:
                    break
    except TimeoutError:
        message = f"the body did not arrive within {settings.read_seconds:g} s"
        raise Refused(408, message, headers={"Connection": "close"}) from None
    if size > settings.max_body_bytes:
        raise Refused(413, f"the body is larger than {settings.max_body_bytes} bytes; send a shorter prompt")
    return b"".join(parts)


async def _answers(place: Place, prompts: list[Any], request: Request) -> list[Completion]:
    """The completions of all prompts; stops the work when the client has gone."""
    answers, looked = [], time.monotonic()
    async for _, item in place.run(prompts):
        if isinstance(item, Completion):
            answers.append(item)
        elif time.monotonic() - looked > 0.2:
            looked = time.monotonic()
            if await request.is_disconnected():
                raise Refused(499, "the client has gone")
    return answers


async def _events(place: Place, prompts: list[Any], head: dict[str, Any]) -> AsyncIterator[str]:
    try:
        async for index, item in place.run(prompts):
            yield protocol.event(item, index=index, **head)
        yield "data: [DONE]\n\n"
    finally:
        place.release()


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refused = Refused(error.status_code, f"{error.detail}; there are {', '.join(PATHS)}")
    return JSONResponse(refused.body, status_code=error.status_code, headers=error.headers)


def _log_to_stderr() -> None:
    if not LOG.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        LOG.addHandler(handler)
        LOG.setLevel(logging.INFO)
        LOG.propagate = False


def _param_of(message: str) -> str:
    """The field that a PromptError is about: its first word when that is one."""
    word = message.split()[0]
    return word if word in ("temperature", "top_p", "seed", "max_tokens") else "prompt"
