"""Several processes train the same as one, stop together and fail together."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from shuoshu.core.errors import REPO_ROOT
from shuoshu.core.run_log import RunLog
from shuoshu.training import checkpoints

STEADY = [
    "--optimizer=adamw",
    "--dropout=0",
    "--log_interval=1",
    "--sample_tokens=0",
    "--batch_size=8",
]


@pytest.fixture(scope="module")
def prose(tiny: list[str]) -> list[str]:
    return [*tiny, *STEADY, "--max_iters=12", "--save_interval=6", "--eval_interval=6"]


@pytest.fixture(scope="module")
def questions(sft: list[str]) -> list[str]:
    """Questions with answers of very different lengths."""
    return [
        *sft,
        *STEADY,
        "--max_iters=20",
        "--save_interval=10",
        "--eval_interval=20",
        "--eval_questions=6",
        "--gradient_accumulation_steps=1",
    ]


@pytest.fixture(scope="module")
def single_process(fork_server, prose, questions, tmp_path_factory) -> dict[str, Path]:
    """Both trainings in one process."""
    folder = tmp_path_factory.mktemp("single")
    for name, command in (("text", prose), ("questions", questions)):
        assert fork_server.train([*command, f"--out_dir={folder / name}"], folder / "output") == [
            0
        ], (folder / "output.0").read_text(encoding="utf-8")
    return {name: folder / name for name in ("text", "questions")}


def losses(out_dir: Path) -> list[float]:
    return [record["loss"] for record in RunLog(out_dir / "log.jsonl").read("step")]


def last_val_loss(out_dir: Path) -> float:
    return RunLog(out_dir / "log.jsonl").read("eval")[-1]["val_loss"]


def best_scores(out_dir: Path) -> list[float]:
    newest, _ = checkpoints.newest_checkpoint(out_dir)
    return json.loads((newest / "state.json").read_text(encoding="utf-8"))["run"]["best_scores"]


# ---------------------------------------------------------------- equal results


@pytest.mark.parametrize(
    "task, world_size", [("text", 2), ("text", 4), ("text", 8), ("questions", 2), ("questions", 4)]
)
def test_several_processes_train_the_same_as_one(
    fork_server, single_process, request, tmp_path, task, world_size
):
    command = [
        *request.getfixturevalue({"text": "prose"}.get(task, task)),
        f"--out_dir={tmp_path / 'out'}",
    ]
    assert fork_server.train(command, tmp_path / "output", world_size) == [0] * world_size, (
        tmp_path / "output.0"
    ).read_text(encoding="utf-8")
    assert losses(tmp_path / "out") == pytest.approx(losses(single_process[task]), rel=1e-5)
    assert last_val_loss(tmp_path / "out") == pytest.approx(
        last_val_loss(single_process[task]), rel=1e-5
    )
    assert best_scores(tmp_path / "out") == best_scores(single_process[task]) and len(
        best_scores(single_process[task])
    ) == (6 if task == "questions" else 0)
    assert not (tmp_path / "output.1").read_text(encoding="utf-8")  # only rank 0 prints


def test_muon_in_fp32_trains_the_same_in_two_processes(fork_server, prose, tmp_path):
    for world_size in (1, 2):
        command = [*prose, "--optimizer=muon", f"--out_dir={tmp_path / str(world_size)}"]
        assert fork_server.train(command, tmp_path / "output", world_size) == [0] * world_size
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-4)


def test_questions_need_the_count_of_all_targets(fork_server, single_process, questions, tmp_path):
    """If each rank divided by its own count, long answers would weigh less."""
    faults = {rank: {"without": ["global count"]} for rank in range(2)}
    assert fork_server.train(
        [*questions, f"--out_dir={tmp_path / 'out'}"], tmp_path / "output", 2, faults
    ) == [0, 0]
    assert losses(tmp_path / "out") != pytest.approx(losses(single_process["questions"]), rel=1e-3)


@pytest.mark.parametrize("before, after", [(2, 1), (1, 2)])
def test_a_run_resumes_with_another_number_of_processes(
    fork_server, single_process, prose, tmp_path, before, after
):
    command = [*prose, f"--out_dir={tmp_path / 'out'}"]
    codes = fork_server.train(
        command,
        tmp_path / "before",
        before,
        {rank: {"fails_at": [8, "killed"]} for rank in range(before)},
    )
    assert codes == [-signal.SIGKILL] * before
    assert fork_server.train([*command, "--resume"], tmp_path / "after", after) == [0] * after
    assert "step-000006" in (tmp_path / "after.0").read_text(encoding="utf-8")
    assert losses(tmp_path / "out") == pytest.approx(losses(single_process["text"]), rel=1e-5)


def test_gradients_are_reduced_once_per_step_and_nothing_else_is_sent(fork_server, prose, tmp_path):
    messages = []
    for name, settings, faults in (
        ("one", [], {}),
        ("four", ["--batch_size=2", "--gradient_accumulation_steps=4"], {}),
        (
            "careless",
            ["--batch_size=2", "--gradient_accumulation_steps=4"],
            {"without": ["no_sync"]},
        ),
    ):
        command = [*prose, *settings, "--max_iters=3", f"--out_dir={tmp_path / name}"]
        faults = {0: {**faults, "counts_messages": str(tmp_path / f"{name}.json")}, 1: faults}
        assert fork_server.train(command, tmp_path / name, 2, faults) == [0, 0]
        messages.append(json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8")))
    assert messages[0] == messages[1] and set(messages[0]) == {
        "gloo:all_reduce"
    }  # the gradients, the loss
    assert messages[2]["gloo:all_reduce"] > messages[1]["gloo:all_reduce"]


# ---------------------------------------------------------------- stopping, failing


def wait_for(output: Path, line: str) -> None:
    until = time.monotonic() + 60
    while not output.exists() or line not in output.read_text(encoding="utf-8"):
        assert time.monotonic() < until, output.read_text(encoding="utf-8")
        time.sleep(0.01)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all_in_mid_evaluation(fork_server, prose, tmp_path, rank):
    """The evaluation would take a minute. Its partial result is not logged."""
    command = [*prose, "--batch_size=2", f"--out_dir={tmp_path / 'out'}"]
    pids = fork_server.start_group(
        command, tmp_path / "output", 2, {r: {"slow": {"batch": 2.5}} for r in range(2)}
    )
    wait_for(tmp_path / "output.0", "machine")
    time.sleep(0.5)
    os.kill(pids[rank], signal.SIGTERM)
    began = time.monotonic()
    assert [fork_server.wait(pid) for pid in pids] == [143, 143]
    assert time.monotonic() - began < 20
    assert "stopped by SIGTERM after step 0" in (tmp_path / "output.0").read_text(encoding="utf-8")
    assert (
        not RunLog(tmp_path / "out" / "log.jsonl").read("eval")
        and checkpoints.newest_checkpoint(tmp_path / "out")[0].name == "step-000000"
    )


@pytest.mark.parametrize(
    "rank, how, expected",
    [(1, "killed", ""), (1, "error", "ValueError: only here"), (0, "mistake", "error: only here")],
)
def test_a_failed_process_ends_the_other_and_the_cause_is_printed(
    fork_server, prose, tmp_path, rank, how, expected
):
    pids = fork_server.start_group(
        [*prose, f"--out_dir={tmp_path / 'out'}"],
        tmp_path / "output",
        2,
        {rank: {"fails_at": [7, how]}},
    )
    codes = [fork_server.wait(pid, 30) for pid in pids]
    assert codes[rank] == {"killed": -signal.SIGKILL, "error": 1, "mistake": 2}[how]
    assert codes[1 - rank] == 2
    assert expected in (tmp_path / f"output.{rank}").read_text(encoding="utf-8")
    other = (tmp_path / f"output.{1 - rank}").read_text(encoding="utf-8")
    assert (
        f"error: process {1 - rank}: another process of this run ended" in other
        and "Traceback" not in other
    )
    assert checkpoints.newest_checkpoint(tmp_path / "out")[0].name == "step-000006"


def test_an_error_on_rank_0_ends_all_processes(fork_server, prose, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    assert fork_server.train([*prose, f"--out_dir={tmp_path / 'out'}"], tmp_path / "output", 2) == [
        2,
        2,
    ]
    assert "is not empty" in (tmp_path / "output.0").read_text(encoding="utf-8") and not (
        tmp_path / "output.1"
    ).read_text(encoding="utf-8")


def test_a_restarted_group_does_not_seek_the_processes_before(fork_server, prose, tmp_path):
    """torchrun --max_restarts keeps its store, with the addresses of the processes before."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torchrun = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    torchrun |= {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    command = [*prose, "--save_interval=1", f"--out_dir={tmp_path / 'out'}", "--resume"]
    for attempt in range(2):
        pids = []
        for rank in (1, 0):  # rank 1 looks for rank 0 before that one has a new address
            own = {"RANK": str(rank), "TORCHELASTIC_RESTART_COUNT": str(attempt)}
            steps = f"--max_iters={attempt + 1}"
            output = tmp_path / f"output.{rank}"
            pids.append(fork_server.start([*command, steps], output, torchrun | own))
        assert [fork_server.wait(pid) for pid in pids] == [0, 0], output.read_text(encoding="utf-8")
    assert checkpoints.newest_checkpoint(tmp_path / "out")[0].name == "step-000002"


@pytest.mark.slow
def test_under_torchrun_ctrl_c_saves_and_a_lost_process_ends_the_others(prose, tmp_path):
    """The real launcher: stopped by Ctrl-C; then resumed, with one of its processes killed."""
    out_dir = tmp_path / "out"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    length = ["--max_iters=4000", "--save_interval=20", "--eval_interval=4000", "--resume"]
    command = [*torchrun, "--nproc_per_node=2", "train.py", *prose, *length, f"--out_dir={out_dir}"]

    def start_and_wait(step: int) -> subprocess.Popen:
        process = subprocess.Popen(
            command,
            cwd=REPO_ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        until = time.monotonic() + 60
        while not (out_dir / "checkpoints" / f"step-{step:06d}").exists():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        return process

    process = start_and_wait(20)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    stopped = int(re.search(r"stopped by SIGINT after step (\d+)", output)[1])
    assert process.returncode
    assert checkpoints.newest_checkpoint(out_dir)[0].name == f"step-{stopped:06d}"

    process = start_and_wait(stopped // 20 * 20 + 40)
    rank_zero = int((out_dir / ".lock").read_text(encoding="utf-8").split()[1])
    os.kill(rank_zero, signal.SIGKILL)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1, output
    assert re.search(r"Root Cause(?s:.*)rank +: 0(?s:.*)Signal 9", output), output
