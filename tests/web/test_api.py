"""The page's API: by name, with limits, for one client and for two hundred at once."""

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

from shuoshu.sft.dataset import read_pairs
from tests.web.serving import PATIENCE, Server, until

QUEUE, FLOOD = 5, 200
WATCHER = """
import os, sys
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        with open(os.environ["WATCHED"], "a") as file:
            file.write(f"{event} {arguments[1] if event == 'socket.connect' else arguments[0]!r}\\n")
sys.addaudithook(note)
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose sitecustomize.py notes every address that a process connects to or looks up."""
    home = tmp_path_factory.mktemp("watched")
    (home / "sitecustomize.py").write_text(WATCHER, encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def server(tuned: Path, pretrained: Path, watched: Path) -> Iterator[Server]:
    env = {"PYTHONPATH": str(watched), "WATCHED": str(watched / "connections")}
    with Server(
        watched,
        tuned,
        pretrained,
        f"--queue={QUEUE}",
        "--max_new_tokens=300",
        "--max_seconds=4",
        env=env,
    ) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return Client(server.url, verbose=False)


@pytest.fixture(scope="module")
def known(qa: Path) -> dict[str, str]:
    return {
        pair["messages"][0]["content"]: pair["messages"][1]["content"]
        for pair in read_pairs(qa, "train")
    }


def post(url: str, document: object, **headers: str) -> tuple[int, dict | str]:
    """(status, answer) of a POST."""
    request = urllib.request.Request(
        url, json.dumps(document).encode(), {"content-type": "application/json", **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


# ---------------------------------------------------------------- by name


def test_a_known_question_is_answered_state_by_state(client, known):
    question, answer = next(iter(known.items()))
    assert client.predict(question, api_name="/ask") == answer
    states = list(client.submit(question, api_name="/ask"))
    assert states[-1] == answer and all(answer.startswith(state) for state in states)


def test_a_continuation_repeats_with_its_seed(client, pretrained):
    def told(seed: int) -> str:
        return client.predict(
            "清晨，", model=str(pretrained), max_new_tokens=20, seed=seed, api_name="/continue"
        )

    assert told(7) == told(7) != told(8) and not told(7).startswith("清晨，")


def test_a_long_continuation_streams(client, pretrained):
    states = list(
        client.submit("清晨，", str(pretrained), 0.0, None, None, 300, api_name="/continue")
    )
    assert len(states) >= 3 and all(
        after.startswith(before) for before, after in itertools.pairwise(states)
    )


def test_the_models_are_listed(client, tuned, pretrained):
    assert [(entry["model"], entry["turns"]) for entry in client.predict(api_name="/models")] == [
        (str(tuned), 1),
        (str(pretrained), 0),
    ]


def test_looking_inside_gives_pieces_with_alternatives(client, pretrained):
    pieces = client.predict(
        "沈砚在渡口🏮。", start="清晨，", model=str(pretrained), api_name="/inside"
    )
    assert "".join(piece["text"] for piece in pieces) == "沈砚在渡口🏮。"
    assert all(0 <= piece["probability"] <= 1 and len(piece["others"][0]) == 2 for piece in pieces)


def test_the_api_is_these_four(client):
    assert set(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == {
        "/ask",
        "/continue",
        "/inside",
        "/models",
    }


def test_what_is_the_pages_own_can_not_be_called_by_a_client(client, server):
    with urllib.request.urlopen(f"{server.url}/config", timeout=PATIENCE) as answer:
        private = [
            entry
            for entry in json.load(answer)["dependencies"]
            if entry["api_visibility"] != "public"
        ]
    assert len(private) > 10
    for entry in private:
        with pytest.raises(ValueError):
            client.predict(fn_index=entry["id"])
        with pytest.raises(ValueError):
            client.predict(api_name=f"/{entry['api_name']}")


@pytest.mark.parametrize("name", ["ask", "continue", "inside", "models"])
def test_no_way_leads_past_the_queue(server, name):
    for way in ("api", "run"):
        status, _ = post(f"{server.url}/gradio_api/{way}/{name}", {"data": ["清"]})
        assert status >= 400


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"question": 3}, "A text is wanted, this is int"),
        ({"question": None}, "this is NoneType"),
        ({"question": ["a"]}, "this is list"),
        ({"question": "好" * 100_000}, "20,000 characters at most, there are 100,000"),
        ({"question": "好" * 200}, "The question is too long"),
        ({"question": " \n"}, "There is no question yet"),
        ({"history": "x"}, "list of [question, answer] pairs"),
        ({"history": [["a"]]}, "list of [question, answer] pairs"),
        ({"history": [["a", 3]]}, "this is int"),
        ({"model": "../etc"}, "There is no such model"),
        ({"model": 3}, "There is no such model"),
        ({"temperature": "0"}, "temperature wants a number"),
        ({"temperature": True}, "temperature wants a number"),
        ({"temperature": -0.1}, "temperature must lie between 0 and 2"),
        ({"top_p": 0}, "top_p must lie between"),
        ({"top_k": 10**400}, "top_k must lie between"),
        ({"top_k": [1]}, "top_k wants a number"),
        ({"max_new_tokens": 301}, "max_new_tokens must lie between 1 and 300"),
        ({"max_new_tokens": 0}, "max_new_tokens must lie between"),
        ({"max_new_tokens": 2.5}, "max_new_tokens"),
        ({"repetition_penalty": 9}, "repetition_penalty must lie between"),
        ({"seed": -1}, "seed must lie between"),
        ({"seed": "x"}, "seed wants a number"),
    ],
)
def test_a_mistake_is_told_in_both_languages(client, wrong, told):
    with pytest.raises(AppError) as caught:
        client.predict(**{"question": "谁？", **wrong}, api_name="/ask")
    assert told in str(caught.value) and re.search("[一-鿿]", str(caught.value))


def test_each_endpoint_refuses_what_is_too_long_or_no_text(client, pretrained):
    for endpoint, name in (("/continue", "text"), ("/inside", "text"), ("/inside", "start")):
        for value, told in ((3, "A text is wanted"), ("好" * 100_000, "Too long")):
            with pytest.raises(AppError, match=told):
                client.predict(
                    **{"text": "清", name: value}, model=str(pretrained), api_name=endpoint
                )


def test_a_model_that_answers_nothing_is_told(client, pretrained):
    with pytest.raises(AppError, match="answers no questions"):
        client.predict("谁？", model=str(pretrained), api_name="/ask")


def test_surrogates_and_odd_numbers_in_raw_json_do_not_hurt(server):
    for body in (
        b'{"data": ["\\\\ud800\\\\udc"]}',
        b'{"data": ["a", NaN, NaN]}',
        b'{"data": "x"}',
        b'{"data": []}',
        b"[]",
        b"{",
        b'{"data": ["a"], "x": 1e999}',
    ):
        request = urllib.request.Request(
            f"{server.url}/gradio_api/call/continue", body, {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                assert answer.status == 200
        except urllib.error.HTTPError as error:
            assert 400 <= error.code < 500, body
    assert server.lives()


def test_large_bodies_uploads_and_files_are_refused(server):
    status, _ = post(f"{server.url}/gradio_api/queue/join", {"data": ["x" * 1_100_000]})
    assert status == 413
    for path in ("/gradio_api/upload", "/gradio_api/%75pload/", "//gradio_api//upload"):
        assert post(server.url + path, {})[0] == 403
    for path in (
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file%3D/etc/passwd",
        "/gradio_api/proxy=http://127.0.0.1/",
        "/static/%2e%2e/%2e%2e/app.py",
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(server.url + path, timeout=PATIENCE)
        assert caught.value.code in (403, 404)
    response = httpx.post(
        f"{server.url}/gradio_api/queue/join",
        content=iter([b"{}", b" "]),
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 413


# ---------------------------------------------------------------- limits


def test_limits_hold_for_clients_also_for_one_that_never_reads(pretrained, tmp_path):
    with Server(tmp_path, pretrained, "--max_new_tokens=1000000", "--max_seconds=2") as server:
        client, begun = Client(server.url, verbose=False), time.monotonic()
        assert client.predict("清晨", temperature=0, max_new_tokens=1000000, api_name="/continue")
        assert 1 < time.monotonic() - begun < 15
        endless = {"data": ["清晨", None, 0, None, None, 1000000, None, None]}
        for _ in range(2):
            assert post(f"{server.url}/gradio_api/call/continue", endless)[0] == 200
        begun = time.monotonic()
        assert client.predict("清晨，", max_new_tokens=3, api_name="/continue")
        assert 1 < time.monotonic() - begun < 15
        code, seconds = server.end(signal.SIGINT)
        assert code == 0 and seconds < 5 and "Traceback" not in server.told()


# ---------------------------------------------------------------- two hundred at once


async def one_of_many(http: httpx.AsyncClient, url: str, number: int) -> str:
    """What becomes of one client's wish: "served", or what it was told."""
    wish = {"data": [f"清晨{number}", None, 0.8, None, None, 20, None, None]}
    joined = await http.post(f"{url}/gradio_api/call/continue", json=wish)
    if joined.status_code != 200:
        return joined.text
    async with http.stream(
        "GET", f"{url}/gradio_api/call/continue/{joined.json()['event_id']}"
    ) as answer:
        told = [line async for line in answer.aiter_lines() if line]
    return "served" if "event: complete" in told else " ".join(told)


async def flood(url: str) -> list[str]:
    limits = httpx.Limits(max_connections=FLOOD)
    async with httpx.AsyncClient(timeout=PATIENCE * 3, limits=limits) as http:
        return await asyncio.gather(*(one_of_many(http, url, number) for number in range(FLOOD)))


def test_of_two_hundred_at_once_each_is_served_or_told_and_memory_stays(server, client, known):
    held = []
    for _ in range(2):
        told = asyncio.run(flood(server.url))
        others = [words for words in told if words != "served"]
        assert (
            len(told) - len(others) >= QUEUE
            and others
            and all("Queue is full" in words for words in others)
        ), set(others)
        question, answer = next(iter(known.items()))
        assert client.predict(question, api_name="/ask") == answer
        held.append(server.memory())
    assert held[1] - held[0] < 150


# ---------------------------------------------------------------- its own house


def test_the_server_connects_to_this_machine_alone(server, client, watched):
    client.predict(api_name="/models")
    lines = (
        (watched / "connections").read_text(encoding="utf-8").splitlines()
        if (watched / "connections").exists()
        else []
    )
    abroad = [
        line for line in lines if not re.search(r"127\.0\.0\.1|localhost|b?'/|None|::1", line)
    ]
    assert lines and abroad == []


def test_without_the_password_nothing_is_served_and_with_it_all(tuned, tmp_path, known):
    with Server(tmp_path, tuned, "--auth=teacher:se:cret", "--auth=pupil:x") as server:
        with urllib.request.urlopen(server.url, timeout=PATIENCE) as answer:
            page = answer.read().decode()
        assert str(tuned) not in page and "waived" not in page and "auth_required" in page
        for path in ("/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=a"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(server.url + path, timeout=PATIENCE)
            assert caught.value.code == 401
        for path in ("/gradio_api/queue/join", "/gradio_api/call/ask", "/gradio_api/run/ask"):
            assert (
                post(server.url + path, {"data": ["谁？"], "fn_index": 0, "session_hash": "a"})[0]
                == 401
            )
        with pytest.raises((AuthenticationError, ValueError)):
            Client(server.url, auth=("teacher", "wrong"), verbose=False)
        question, answer = next(iter(known.items()))
        for user in (("teacher", "se:cret"), ("pupil", "x")):
            assert (
                Client(server.url, auth=user, verbose=False).predict(question, api_name="/ask")
                == answer
            )
        code, seconds = server.end(signal.SIGTERM)
        assert code == 0 and seconds < 5


def test_a_signal_ends_it_in_the_midst_of_a_text(pretrained, tmp_path):
    with Server(tmp_path, pretrained, "--max_new_tokens=1000000", "--max_seconds=600") as server:
        growing = Client(server.url, verbose=False).submit(
            "清晨", temperature=0, max_new_tokens=1000000, api_name="/continue"
        )
        until(lambda: growing.outputs(), "a text")
        code, seconds = server.end(signal.SIGTERM)
        assert code == 0 and seconds < 5
