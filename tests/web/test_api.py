"""The page's API: its endpoints, their errors and limits, and many clients at once."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError, AuthenticationError

from tests.web.serving import TIMEOUT, Server, wait_for

QUEUE, CLIENTS = 5, 200
MAX_NEW_TOKENS = 1_000_000  # more than a test waits for
MAX_SECONDS = 2
ENDPOINTS = ("ask", "answer", "continue", "inside", "judge", "models")

# A sitecustomize.py that logs every address that its process connects to or looks up.
CONNECTION_LOGGER = """
import os, sys
def log(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        address = arguments[1] if event == "socket.connect" else arguments[0]
        with open(os.environ["CONNECTION_LOG"], "a") as file:
            file.write(f"{event} {address!r}\\n")
sys.addaudithook(log)
"""


@pytest.fixture(scope="module")
def connection_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("connections")
    (folder / "sitecustomize.py").write_text(CONNECTION_LOGGER, encoding="utf-8")
    return folder / "log"


@pytest.fixture(scope="module")
def server(
    tuned: Path, pretrained: Path, label_model: Path, connection_log: Path
) -> Iterator[Server]:
    folder = connection_log.parent
    with Server(
        folder,
        tuned,
        pretrained,
        label_model,
        f"--queue={QUEUE}",
        f"--max_new_tokens={MAX_NEW_TOKENS}",
        f"--max_seconds={MAX_SECONDS}",
        env={"PYTHONPATH": str(folder), "CONNECTION_LOG": str(connection_log)},
    ) as server:
        yield server
        server.stop(signal.SIGINT)


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return Client(server.url, verbose=False)


@pytest.fixture(scope="module")
def question(known: dict[str, str]) -> str:
    """A question whose answer the model knows."""
    return next(iter(known))


def post(url: str, document: object) -> int:
    """The status of a POST of JSON."""
    content = {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(document).encode(), content)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def get_error(url: str) -> int:
    """The status of a GET that fails."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url, timeout=TIMEOUT)
    return caught.value.code


# ---------------------------------------------------------------- endpoints


def test_a_known_question_is_answered_state_by_state(client, known, question):
    assert client.predict(question, api_name="/ask") == known[question]
    states = list(client.submit(question, api_name="/ask"))
    assert states[-1] == known[question]
    assert all(known[question].startswith(state) for state in states)


def test_a_system_message_counts_as_part_of_the_question(client):
    with pytest.raises(AppError, match="reads"):
        client.predict("谁？", system="长" * 100, api_name="/ask")


def test_an_answer_says_how_it_was_found_and_where_the_book_speaks_of_it(client, known, question):
    answer = client.predict(question, answer_by="auto", api_name="/answer")
    assert answer["answer"] == known[question] and answer["answered_by"] == "recall"
    assert answer["probability"] > 0.9 and answer["nearest"] == []
    assert 1 <= len(answer["sources"]) <= 3
    assert all(set(source) == {"source", "text"} for source in answer["sources"])


@pytest.mark.parametrize("precision", [0, 0.9, 1])
def test_only_a_declined_question_has_no_answer(client, precision):
    answer = client.predict(
        "zebra xylophone 42", answer_by="auto", precision=precision, api_name="/answer"
    )
    assert (answer["answer"] is None) == (answer["answered_by"] == "decline")
    assert 0 <= answer["probability"] <= 1 and len(answer["nearest"]) == 3
    if not precision:
        assert answer["answer"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"answer_by": "guess"}, "Unknown answer_by. Available: auto, write, recall, read"),
        ({"answer_by": ["auto"]}, "Unknown answer_by"),
        ({"answer_by": 3}, "Unknown answer_by"),
        ({"precision": 2}, "precision must be between 0 and 1"),
        ({"precision": "0.9"}, "precision must be a number"),
        ({"question": ""}, "The question is empty"),
        ({"question": "好" * 200, "answer_by": "read"}, "is too long"),
    ],
)
def test_a_wrong_value_of_an_answer_is_named(client, arguments, message):
    with pytest.raises(AppError) as caught:
        client.predict(**{"question": "谁？", **arguments}, api_name="/answer")
    assert message in str(caught.value) and re.search("[一-鿿]", str(caught.value))


def test_a_continuation_repeats_with_its_seed(client, pretrained):
    def write(seed: int) -> str:
        return client.predict(
            "清晨，", model=str(pretrained), max_new_tokens=20, seed=seed, api_name="/continue"
        )

    assert write(7) == write(7) != write(8) and not write(7).startswith("清晨，")


def test_a_long_continuation_streams(client, pretrained):
    states = list(
        client.submit("清晨，", str(pretrained), 0.0, None, None, 300, api_name="/continue")
    )
    assert len(states) >= 3
    assert all(after.startswith(before) for before, after in itertools.pairwise(states))


def test_the_models_are_listed(client, tuned, pretrained, label_model):
    labels = ["差评", "好评"]
    assert client.predict(api_name="/models") == [
        {"model": str(tuned), "task": "questions", "turns": 1, "system": "", "labels": []},
        {"model": str(pretrained), "task": "text", "turns": 0, "system": "", "labels": []},
        {"model": str(label_model), "task": "labels", "turns": 1, "system": "", "labels": labels},
    ]


def test_texts_are_judged(client):
    good, bad, *_ = judged = client.predict(
        ["房间很好，早餐干净。", "房间很差，早餐肮脏。", "<b>" * 5000], api_name="/judge"
    )
    assert (good["label"], bad["label"]) == ("好评", "差评")
    for judgement in judged:
        assert set(judgement["probabilities"]) == {"好评", "差评"}
        assert sum(judgement["probabilities"].values()) == pytest.approx(1)


def test_inside_returns_pieces_with_alternatives(client, pretrained):
    text = "沈砚在渡口🏮。"
    pieces = client.predict(text, start="清晨，", model=str(pretrained), api_name="/inside")
    assert "".join(piece["text"] for piece in pieces) == text
    assert all(0 <= piece["probability"] <= 1 and len(piece["others"][0]) == 2 for piece in pieces)


def test_the_api_has_these_endpoints(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(endpoints) == {f"/{name}" for name in ENDPOINTS}


def test_a_client_can_not_call_the_handlers_of_the_page(client, server):
    with urllib.request.urlopen(f"{server.url}/config", timeout=TIMEOUT) as response:
        dependencies = json.load(response)["dependencies"]
    private = [entry for entry in dependencies if entry["api_visibility"] != "public"]
    assert len(private) > 10
    for entry in private:
        with pytest.raises(ValueError):
            client.predict(fn_index=entry["id"])
        with pytest.raises(ValueError):
            client.predict(api_name=f"/{entry['api_name']}")


@pytest.mark.parametrize("name", ENDPOINTS)
def test_no_endpoint_bypasses_the_queue(server, name):
    for route in ("api", "run"):
        assert post(f"{server.url}/gradio_api/{route}/{name}", {"data": ["清"]}) >= 400


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"question": 3}, "Expected a text, got int"),
        ({"question": None}, "got NoneType"),
        ({"question": ["a"]}, "got list"),
        ({"question": "好" * 100_000}, "at most 20,000 characters, this has 100,000"),
        ({"question": "好" * 200}, "with any system message, is too long"),
        ({"question": "谁？", "system": "好" * 200}, "with any system message, is too long"),
        ({"question": " \n"}, "The question is empty"),
        ({"history": "x"}, "list of [question, answer] pairs"),
        ({"history": [["a"]]}, "list of [question, answer] pairs"),
        ({"history": [["a", 3]]}, "got int"),
        ({"model": "../etc"}, "Unknown model"),
        ({"model": 3}, "Unknown model"),
        ({"temperature": "0"}, "temperature must be a number"),
        ({"temperature": True}, "temperature must be a number"),
        ({"temperature": -0.1}, "temperature must be between 0 and 2"),
        ({"top_p": 0}, "top_p must be between"),
        ({"top_k": 10**400}, "top_k must be between"),
        ({"top_k": [1]}, "top_k must be a number"),
        ({"max_new_tokens": MAX_NEW_TOKENS + 1}, "max_new_tokens must be between 1 and 1e+06"),
        ({"max_new_tokens": 0}, "max_new_tokens must be between"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number"),
        ({"repetition_penalty": 9}, "repetition_penalty must be between"),
        ({"seed": -1}, "seed must be between"),
        ({"seed": "x"}, "seed must be a number"),
    ],
)
def test_an_error_is_a_message_in_both_languages(client, arguments, message):
    with pytest.raises(AppError) as caught:
        client.predict(**{"question": "谁？", **arguments}, api_name="/ask")
    assert message in str(caught.value) and re.search("[一-鿿]", str(caught.value))


@pytest.mark.parametrize(
    "endpoint, name", [("/continue", "text"), ("/inside", "text"), ("/inside", "start")]
)
def test_every_endpoint_checks_its_texts(client, pretrained, endpoint, name):
    for value, message in ((3, "Expected a text"), ("好" * 100_000, "Too long")):
        arguments = {"text": "清", name: value, "model": str(pretrained)}
        with pytest.raises(AppError, match=message):
            client.predict(**arguments, api_name=endpoint)


@pytest.mark.parametrize(
    "texts, message",
    [
        ("好", "texts must be a list"),
        (None, "texts must be a list"),
        ({"a": "b"}, "texts must be a list"),
        ([3], "Expected a text, got int"),
        (["好", " \n"], "There is no text yet"),
        (["好"] * 201, "at most 200 texts at a time, here are 201"),
        (["好" * 20_001], "at most 20,000 characters"),
        (["好" * 20_000] * 11, "at most 200,000 characters, this has 220,000"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(client, texts, message):
    with pytest.raises(AppError) as caught:
        client.predict(texts, api_name="/judge")
    assert message in str(caught.value)


def test_a_model_is_refused_what_it_was_not_trained_for(client, pretrained, label_model):
    for endpoint, given, model, message in (
        ("/ask", "谁？", pretrained, "answers no questions"),
        ("/ask", "谁？", label_model, "answers no questions"),
        ("/continue", "清晨", label_model, "writes none"),
        ("/judge", ["好"], pretrained, "labels no texts"),
    ):
        with pytest.raises(AppError, match=message):
            client.predict(given, model=str(model), api_name=endpoint)


@pytest.mark.parametrize(
    "body",
    [
        b'{"data": ["\\\\ud800\\\\udc"]}',
        b'{"data": ["a", NaN, NaN]}',
        b'{"data": "x"}',
        b'{"data": []}',
        b"[]",
        b"{",
        b'{"data": ["a"], "x": 1e999}',
    ],
)
def test_odd_json_is_answered_or_refused(server, body):
    response = httpx.post(
        f"{server.url}/gradio_api/call/continue",
        content=body,
        headers={"content-type": "application/json"},
        timeout=TIMEOUT,
    )
    assert response.status_code == 200 or 400 <= response.status_code < 500
    assert server.is_serving()


def test_large_bodies_uploads_and_files_are_refused(server):
    join = f"{server.url}/gradio_api/queue/join"
    assert post(join, {"data": ["x" * 1_100_000]}) == 413
    without_length = httpx.post(
        join, content=iter([b"{}", b" "]), headers={"content-type": "application/json"}
    )
    assert without_length.status_code == 413
    for path in ("/gradio_api/upload", "/gradio_api/%75pload/", "//gradio_api//upload"):
        assert post(server.url + path, {}) == 403
    for path in (
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file%3D/etc/passwd",
        "/gradio_api/proxy=http://127.0.0.1/",
        "/static/%2e%2e/%2e%2e/app.py",
    ):
        assert get_error(server.url + path) in (403, 404)


# ---------------------------------------------------------------- limits


def test_the_time_limit_holds_for_clients_and_for_one_that_never_reads(server, client, pretrained):
    def seconds(max_new_tokens: int) -> float:
        start = time.monotonic()
        settings = {"temperature": 0, "max_new_tokens": max_new_tokens}
        assert client.predict("清晨", model=str(pretrained), **settings, api_name="/continue")
        return time.monotonic() - start

    assert MAX_SECONDS / 2 < seconds(MAX_NEW_TOKENS) < 15
    endless = ["清晨", str(pretrained), 0, None, None, MAX_NEW_TOKENS, None, None]
    for _ in range(2):  # its result is never fetched
        assert post(f"{server.url}/gradio_api/call/continue", {"data": endless}) == 200
    assert MAX_SECONDS / 2 < seconds(3) < 15


async def continue_text(http: httpx.AsyncClient, url: str, number: int) -> str:
    """One client's request: returns "served" or the error."""
    data = [f"清晨{number}", None, 0.8, None, None, 20, None, None]
    joined = await http.post(f"{url}/gradio_api/call/continue", json={"data": data})
    if joined.status_code != 200:
        return joined.text
    events = f"{url}/gradio_api/call/continue/{joined.json()['event_id']}"
    async with http.stream("GET", events) as response:
        lines = [line async for line in response.aiter_lines() if line]
    return "served" if "event: complete" in lines else " ".join(lines)


async def continue_texts(url: str) -> list[str]:
    """The results of many clients at once."""
    # No connection is used twice: the server may close one just then.
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=TIMEOUT * 3, limits=limits) as http:
        return await asyncio.gather(*(continue_text(http, url, n) for n in range(CLIENTS)))


def test_of_many_clients_each_is_served_or_refused_and_memory_stays(
    server, client, known, question
):
    megabytes = []
    for _ in range(2):
        results = asyncio.run(continue_texts(server.url))
        errors = [result for result in results if result != "served"]
        assert len(results) - len(errors) >= QUEUE
        assert errors and all("Queue is full" in error for error in errors), set(errors)
        assert client.predict(question, api_name="/ask") == known[question]
        megabytes.append(server.resident_megabytes())
    assert megabytes[1] - megabytes[0] < 150


# ---------------------------------------------------------------- network, login, signals


def test_the_server_connects_to_this_machine_only(client, connection_log):
    client.predict(api_name="/models")
    lines = connection_log.read_text(encoding="utf-8").splitlines()
    is_local = re.compile(r"127\.0\.0\.1|localhost|b?'/|None|::1")
    assert lines and [line for line in lines if not is_local.search(line)] == []


def test_nothing_is_served_without_the_password_and_a_signal_ends_the_page(
    tuned, pretrained, tmp_path, known, question
):
    with Server(
        tmp_path,
        tuned,
        pretrained,
        "--auth=teacher:se:cret",
        "--auth=pupil:x",
        f"--max_new_tokens={MAX_NEW_TOKENS}",
    ) as server:
        with urllib.request.urlopen(server.url, timeout=TIMEOUT) as response:
            page = response.read().decode()
        assert str(tuned) not in page and "auth_required" in page
        for path in ("/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=a"):
            assert get_error(server.url + path) == 401
        call = {"data": ["谁？"], "fn_index": 0, "session_hash": "a"}
        for path in ("/gradio_api/queue/join", "/gradio_api/call/ask", "/gradio_api/run/ask"):
            assert post(server.url + path, call) == 401
        with pytest.raises((AuthenticationError, ValueError)):
            Client(server.url, auth=("teacher", "wrong"), verbose=False)
        for login in (("teacher", "se:cret"), ("pupil", "x")):
            client = Client(server.url, auth=login, verbose=False)
            assert client.predict(question, api_name="/ask") == known[question]

        endless = {"temperature": 0, "max_new_tokens": MAX_NEW_TOKENS}
        growing = client.submit("清晨", model=str(pretrained), **endless, api_name="/continue")
        wait_for(growing.outputs, "a growing text")
        server.stop(signal.SIGTERM)
        assert "Traceback" not in server.output()
