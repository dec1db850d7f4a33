"""The processes of an experiment: their output, failures, and how they are stopped."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from shuoshu.core.errors import UserError
from shuoshu.experiments.child import run_child

SAVES_WHEN_STOPPED = """
import signal, sys, time
def save(number, frame):
    time.sleep(0.2)
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_failure_shows_the_last_lines_and_the_command(tmp_path):
    log = tmp_path / "train.log"
    with pytest.raises(UserError) as caught:
        run_child(["train.py", "--max_epoch=3", "--out_dir=out here"], log)
    message = str(caught.value)
    assert "train.py ended with code 2" in message and str(log) in message
    assert "did you mean max_epochs" in message
    assert "python train.py --max_epoch=3 '--out_dir=out here'" in message


def test_the_output_of_all_commands_stays_in_the_log(tmp_path):
    script, log = tmp_path / "say.py", tmp_path / "say.log"
    script.write_text("import sys; print(*sys.argv[1:])", encoding="utf-8")
    run_child([str(script), "one"], log)
    run_child([str(script), "two"], log)
    assert log.read_text("utf-8").split() == ["one", "two"]


@pytest.mark.skipif(os.name != "posix", reason="Windows has other signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_saves_before_the_experiment_ends(tmp_path, number):
    script, log = tmp_path / "work.py", tmp_path / "work.log"
    script.write_text(SAVES_WHEN_STOPPED, encoding="utf-8")

    def stop_when_ready() -> None:
        while not (log.is_file() and "ready" in log.read_text("utf-8")):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop_when_ready, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run_child([str(script)], log)
    assert log.read_text("utf-8").split() == ["ready", "saved"]
    assert signal.getsignal(signal.SIGTERM) is before
