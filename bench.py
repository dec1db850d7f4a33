"""Measures speed: Shuoshu beside a nanoGPT checkout, the limit of the machine, or transformers.

python bench.py PART [FILE|FOLDER ...] [--vs=NANOGPT] [--json=FILE] [--key=value ...]
PART is train (tokens/s), loss (time to nanoGPT's best loss), sample (tokens/s of text) or scale
(how time and memory grow with model, context and batch).
The input is novels or one folder that prepare.py made; default: the bundled novella.
Without --vs, Shuoshu and the limit are measured alone. Only --json and --picture write files.

python bench.py lora BASE DATA       LoRA of the model in BASE on questions in DATA, beside PEFT
python bench.py generate BASE        tokens/s of text, beside transformers' generate()
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from shuoshu.bench.settings import BenchSettings
from shuoshu.core.cli import command, parse
from shuoshu.core.errors import UserError

PARTS = ("train", "loss", "sample", "scale", "lora", "generate")


@command
def main(argv: Sequence[str]) -> None:
    settings = parse(BenchSettings, argv, __doc__)
    if not settings.words or settings.words[0] not in PARTS:
        raise UserError(f"name the part to measure: python bench.py {'|'.join(PARTS)}")
    for name in (settings.json, settings.picture):
        if name and not Path(name).absolute().parent.is_dir():
            raise UserError(f"can't write {name}: there is no folder {Path(name).parent}")
    from shuoshu.bench.context import run_command

    measure(settings, run_command)


def measure(settings: BenchSettings, run: Callable[[list[str], dict, Path], str]) -> None:
    """Measures the part that the settings name and writes --json, even after an error or Ctrl-C.

    `run(command, environment, folder)` runs a measurement and returns its output.
    """
    from shuoshu.bench.context import BenchContext
    from shuoshu.bench.measure import BenchReport
    from shuoshu.bench.others import measure_generation, measure_lora
    from shuoshu.bench.scale import measure_scale
    from shuoshu.bench.throughput import measure_sampling, measure_training
    from shuoshu.bench.time_to_loss import measure_loss

    parts = {
        "train": measure_training,
        "loss": measure_loss,
        "sample": measure_sampling,
        "scale": measure_scale,
        "lora": measure_lora,
        "generate": measure_generation,
    }
    report = BenchReport(settings.words[0], settings)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
            parts[settings.words[0]](BenchContext(settings, report, Path(folder), run))
        report.content["complete"] = True
    finally:
        if settings.json:
            report.write(Path(settings.json))


if __name__ == "__main__":
    sys.exit(main())
