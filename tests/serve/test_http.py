"""The HTTP server, as a process of its own on loopback, against answers of the engine itself."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tessera.errors import ConfigError, UserError
from tessera.serve.engine import Engine
from tessera.serve.http import application, bind
from tessera.serve.protocol import ServedModel
from tessera.serve.queue import Full, Queue
from tessera.serve.settings import ServeSettings

from .conftest import CONTEXT

SERVE = """
import sys
from pathlib import Path
from tessera.serve.engine import Engine
from tessera.serve.http import serve_http
from tessera.serve.protocol import ServedModel
from tessera.serve.settings import ServeSettings
engine = Engine(Path(sys.argv[1]))
info = ServedModel(name="tiny", version=3, weights_sha256=engine.weights_sha256, created=1)
settings = ServeSettings(max_requests=4, max_body_bytes=100_000, read_seconds=1.0, api_key=sys.argv[2] or None)
serve_http(engine, settings=settings, info=info, port=0, announce=lambda line: print(line, flush=True))
"""
PATH = "/v1/completions"
JSON = {"Content-Type": "application/json"}


def start(checkpoint, log, *, api_key=""):
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(checkpoint), api_key],
        stdout=subprocess.PIPE, stderr=log.open("w"), text=True, env={**os.environ, "TESSERA_TEST_KEY": "sesame"},
    )  # fmt: skip
    line = process.stdout.readline()
    assert line.startswith("tiny version 3 answers on http://127.0.0.1:"), log.read_text()
    return process, line.split()[5].removesuffix(PATH + ";")


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("http") / "log"


@pytest.fixture(scope="module")
def server(checkpoint, log):
    process, url = start(checkpoint, log)
    yield url
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 0, log.read_text()


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server, timeout=30) as client:
        yield client


def refused(response, status, said, *, param=None):
    error = response.json()["error"]
    assert response.status_code == status, error
    assert said in error["message"]
    assert error["param"] == param
    assert set(error) == {"message", "type", "param", "code"}


def test_a_completion_has_the_engines_text_in_openais_shape(client, engine):
    body = {"model": "tiny", "prompt": "Return the", "max_tokens": 12, "temperature": 0.8, "seed": 4, "user": "me"}
    found = client.post(PATH, json=body).json()
    expected = engine.complete("Return the", max_tokens=12, temperature=0.8, seed=4)

    assert found["object"] == "text_completion"
    assert found["model"] == "tiny"
    assert found["choices"] == [
        {"index": 0, "text": expected.text, "logprobs": None, "finish_reason": expected.finish_reason}
    ]
    assert found["usage"] == {
        "prompt_tokens": expected.prompt_tokens,
        "completion_tokens": expected.completion_tokens,
        "total_tokens": expected.prompt_tokens + expected.completion_tokens,
    }


def test_several_prompts_are_answered_in_order(client, engine):
    found = client.post(PATH, json={"prompt": ["Raise", "Return"], "max_tokens": 5, "n": 1, "echo": False}).json()

    assert [choice["text"] for choice in found["choices"]] == [
        engine.complete(prompt, max_tokens=5).text for prompt in ("Raise", "Return")
    ]


def test_a_stream_adds_up_to_the_answer(client, engine):
    body = {"prompt": ["Return the", "Raise"], "max_tokens": 15, "stream": True, "stop": ["zz"]}
    with client.stream("POST", PATH, json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    events = [json.loads(line)["choices"][0] for line in lines[:-1]]

    assert lines[-1] == "[DONE]"
    for index, prompt in enumerate(body["prompt"]):
        own = [event for event in events if event["index"] == index]
        expected = engine.complete(prompt, max_tokens=15, stop=["zz"])
        assert "".join(event["text"] for event in own) == expected.text
        assert [event["finish_reason"] for event in own if event["finish_reason"]] == [expected.finish_reason]


def test_health_and_models_say_what_answers(client, engine):
    health = client.get("/health").json()

    assert (health["model"], health["version"], health["ready"]) == ("tiny", 3, True)
    assert health["weights_sha256"] == engine.weights_sha256
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny"]


@pytest.mark.parametrize(
    ("body", "status", "said", "param"),
    [
        ({"max_tokens": 3}, 400, "prompt is missing", "prompt"),
        ({"prompt": 7}, 400, "wanted a string", "prompt"),
        ({"prompt": []}, 400, "1 to 16", "prompt"),
        ({"prompt": ["a"] * 17}, 400, "1 to 16", "prompt"),
        ({"prompt": "Return " * 200}, 400, f"at most {CONTEXT - 1}", "prompt"),
        ({"prompt": "a", "max_tokens": 1000}, 400, f"context of {CONTEXT}", "prompt"),
        ({"prompt": "a", "max_tokens": 0}, 400, "at least 1", "max_tokens"),
        ({"prompt": "a", "max_tokens": 2.5}, 400, "max_tokens", "max_tokens"),
        ({"prompt": "a", "temperature": 2.5}, 400, "0 to 2", "temperature"),
        ({"prompt": "a", "temperature": "hot"}, 400, "temperature", "temperature"),
        ({"prompt": "a", "top_p": 0}, 400, "top_p", "top_p"),
        ({"prompt": "a", "stop": ["a"] * 5}, 400, "up to 4", "stop"),
        ({"prompt": "a", "stop": ""}, 400, "1 to 256", "stop"),
        ({"prompt": "a", "n": 2}, 400, "n is not implemented", "n"),
        ({"prompt": "a", "logprobs": 1}, 400, "logprobs is not implemented", "logprobs"),
        ({"prompt": "a", "secret word": 1}, 400, "unknown field", None),
        ({"prompt": "a", "model": "other"}, 404, "one model: tiny", "model"),
        ({"prompt": "\ud800"}, 400, "valid Unicode", "prompt"),
    ],
)
def test_bad_requests_get_one_clear_sentence(client, body, status, said, param):
    refused(client.post(PATH, content=json.dumps(body), headers=JSON), status, said, param=param)


@pytest.mark.parametrize("body", [b"{", b"", b"\xff", b"[" * 100_000, b'{"prompt": NaN}', b"1" * 5000])
def test_what_is_not_json_is_refused(client, body):
    refused(client.post(PATH, content=body, headers=JSON), 400, "not JSON")


def test_other_shapes_types_sizes_paths_and_hosts_are_refused(client):
    refused(client.post(PATH, content=b"[]", headers=JSON), 400, "JSON list")
    refused(
        client.post(PATH, content=b'{"prompt": "a"}', headers={"Content-Type": "text/plain"}), 415, "application/json"
    )
    refused(client.post(PATH, json={"prompt": "x" * 8_000_000}), 413, "larger than 100000 bytes")
    refused(client.post(PATH, content=(b"x" * 1000 for _ in range(200)), headers=JSON), 413, "larger than")
    refused(client.get("/v1/chat"), 404, "/v1/completions")
    refused(client.get(PATH), 405, "/v1/completions")
    refused(client.get("/health", headers={"Host": "evil.example:80"}), 421, "127.0.0.1")


def test_a_body_that_does_not_come_gets_408_and_holds_nobody_up(client, server):
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        slow.sendall(b'Content-Length: 40\r\n\r\n{"prompt"')
        assert client.post(PATH, json={"prompt": "a", "max_tokens": 2}).status_code == 200
        assert b"408" in slow.recv(1000).split(b"\r\n")[0]


def test_too_many_at_once_get_429_and_nobody_a_wrong_answer(server, engine):
    body = {"prompt": ["Return the"] * 16, "max_tokens": 40, "temperature": 1.0, "seed": 1}
    expected = engine.complete("Return the", max_tokens=40, temperature=1.0, seed=1).text

    def ask(_):
        return httpx.post(server + PATH, json=body, timeout=60)

    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(ask, range(16)))

    answered = [response for response in responses if response.status_code == 200]
    overloaded = [response for response in responses if response.status_code == 429]
    assert len(answered) >= 4
    assert len(overloaded) >= 1
    assert len(answered) + len(overloaded) == 16
    assert {choice["text"] for response in answered for choice in response.json()["choices"]} == {expected}
    refused(overloaded[0], 429, "try again later")
    assert overloaded[0].headers["Retry-After"] == "1"
    assert httpx.get(server + "/health").json()["requests"] == 0


def test_a_client_that_goes_away_gives_its_place_free(server, client):
    body = {"prompt": ["Return the"] * 16, "max_tokens": 50, "stream": True}
    for _ in range(6):  # more than there are places
        with client.stream("POST", PATH, json=body) as response:
            next(response.iter_lines())
    deadline = time.monotonic() + 20
    while client.get("/health").json()["requests"] and time.monotonic() < deadline:
        time.sleep(0.05)

    assert client.get("/health").json()["requests"] == 0


def test_the_log_has_a_line_a_request_and_no_text_of_it(client, log):
    client.post(PATH, json={"prompt": "Xyzzy Return", "max_tokens": 3, "temperature": 9})
    client.post(PATH, json={"prompt": "Xyzzy Return", "max_tokens": 3})
    client.post(PATH, content=b'{"prompt": "Xyzzy', headers=JSON)
    client.get("/Xyzzy?prompt=Xyzzy")
    client.get("/health")
    found = log.read_text()

    assert "POST /v1/completions 200" in found
    assert "POST /v1/completions 400" in found
    assert "GET - 404" in found
    assert "Xyzzy" not in found
    assert "Traceback" not in found


def test_a_key_protects_everything_but_health(checkpoint, tmp_path):
    process, url = start(checkpoint, tmp_path / "log", api_key="${env:TESSERA_TEST_KEY}")
    try:
        body = {"prompt": "a", "max_tokens": 2}
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "sesame ü".encode()}):
            refused(httpx.post(url + PATH, json=body, headers=headers), 401, "Bearer KEY")
        assert httpx.get(url + "/v1/models").status_code == 401
        assert httpx.post(url + PATH, json=body, headers={"Authorization": "Bearer sesame"}).status_code == 200
        assert httpx.get(url + "/health").status_code == 200
    finally:
        process.terminate()
        process.wait(timeout=10)


def test_work_stops_when_nobody_listens(checkpoint):
    class Counting(Engine):
        started = 0

        def stream(self, prepared):
            self.started += 1
            yield from super().stream(prepared)

    engine = Counting(checkpoint)

    async def scenario():
        queue = Queue(engine, max_requests=1)
        place = queue.admit()
        with pytest.raises(Full):
            queue.admit()
        async for _ in place.run([engine.prepare("Return the", max_tokens=40)] * 50):
            break
        place.release()
        place.release()
        while queue.num_requests:
            await asyncio.sleep(0.01)
        queue.admit()
        queue.close()

    asyncio.run(asyncio.wait_for(scenario(), timeout=30))
    assert engine.started < 50


def test_a_taken_port_is_one_clear_line():
    with bind("127.0.0.1", port=0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port} cannot be listened on .*another --port"):
            bind("127.0.0.1", port=port)


def test_an_open_address_needs_a_key(engine):
    info = ServedModel(name="tiny", version=1, weights_sha256="", created=0)
    with pytest.raises(ConfigError, match="api_key"):
        application(engine, settings=ServeSettings(host="0.0.0.0"), info=info)
    with pytest.raises(ConfigError, match="NOT_SET_ANYWHERE"):
        application(engine, settings=ServeSettings(host="0.0.0.0", api_key="${env:NOT_SET_ANYWHERE}"), info=info)


def test_serving_does_not_import_what_it_does_not_need():
    code = (
        "import sys, tessera.serve.http\n"
        "unwanted = {'mlflow', 'pyspark', 'pandas', 'sklearn', 'scipy', 'deltalake', 'pyarrow'} & set(sys.modules)\n"
        "assert not unwanted, unwanted"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
