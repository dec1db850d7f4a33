"""What only a GPU can show: compiled training in bf16 and fp16, exactness, the cache, two cards. Skipped without one."""

import os
import subprocess
import sys

import pytest
import torch

import train
from shuoshu.core.errors import REPO_ROOT
from shuoshu.core.run_log import RunLog
from shuoshu.generation.sampling import SamplingParams, TextGenerator
from shuoshu.models import weights
from shuoshu.training.optimizers import orthogonalize

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs an NVIDIA GPU: compiled training, fp16, nccl"
    ),
]


def run(tiny, out_dir, *changes):
    assert (
        train.main(
            [
                *tiny,
                "--device=cuda",
                "--max_iters=60",
                "--eval_interval=30",
                "--sample_tokens=20",
                f"--out_dir={out_dir}",
                *changes,
            ]
        )
        == 0
    )
    return [record["val_loss"] for record in RunLog(out_dir / "log.jsonl").read("eval")]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("compiled", ["true", "false"])
def test_it_learns_in_every_precision_compiled_or_not(tiny, tmp_path, dtype, compiled):
    losses = run(tiny, tmp_path / "out", f"--dtype={dtype}", f"--compile={compiled}")
    assert losses[-1] < losses[0] - 2


def test_it_learns_what_a_cpu_learns(tiny, tmp_path):
    on_gpu = run(
        tiny,
        tmp_path / "gpu",
        "--dtype=float32",
        "--compile=false",
        "--dropout=0",
        "--optimizer=adamw",
    )
    on_cpu = run(
        tiny,
        tmp_path / "cpu",
        "--device=cpu",
        "--dtype=float32",
        "--dropout=0",
        "--optimizer=adamw",
    )
    assert on_gpu == pytest.approx(on_cpu, rel=1e-2)


def test_a_resumed_run_goes_on_where_it_stopped(tiny, tmp_path):
    settings = ["--dtype=bfloat16", "--dropout=0", "--schedule=constant"]
    straight = run(tiny, tmp_path / "straight", *settings)
    run(tiny, tmp_path / "resumed", *settings, "--max_iters=30")
    resumed = run(tiny, tmp_path / "resumed", *settings, "--resume")
    assert resumed[-1] == pytest.approx(straight[-1], rel=1e-2)


def test_greedy_text_is_the_cpus(pretrained):
    texts = []
    for device in ("cpu", "cuda"):
        model, tokenizer, *_ = weights.load_model(pretrained, device)
        prompts = [tokenizer.encode(text) for text in ("清晨，沈砚在渡口", "赵")]
        texts.append(
            [
                result.text
                for result in TextGenerator(model, tokenizer).complete(
                    prompts, SamplingParams(90, 0.0), [0, 1]
                )
            ]
        )
    assert texts[0] == texts[1]


def test_bf16_orthogonalises_as_fp32_does():
    matrices = torch.randn(4, 64, 256, device="cuda")
    rough, fine = (
        orthogonalize(matrices, dtype).float() for dtype in (torch.bfloat16, torch.float32)
    )
    assert ((rough - fine).norm() / fine.norm()) < 0.05


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs: nccl")
def test_two_cards_train_as_one(tiny, tmp_path):
    settings = [
        *tiny,
        "--device=cuda",
        "--dtype=float32",
        "--dropout=0",
        "--optimizer=adamw",
        "--max_iters=10",
        "--log_interval=1",
        "--sample_tokens=0",
    ]
    assert train.main([*settings, f"--out_dir={tmp_path / 'one'}"]) == 0
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "train.py",
        *settings,
        f"--out_dir={tmp_path / 'two'}",
    ]
    subprocess.run(command, cwd=REPO_ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    one, two = (
        [r["loss"] for r in RunLog(tmp_path / name / "log.jsonl").read("step")]
        for name in ("one", "two")
    )
    assert one == pytest.approx(two, rel=1e-3)
