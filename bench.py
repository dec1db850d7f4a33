"""How fast, against what: ours, a nanoGPT that you have, and the machine's own limit, measured in turn in one run.

python bench.py PART [FILE|FOLDER ...] [--vs=NANOGPT] [--json=FILE] [--key=value ...]
PART is train (tokens/s), loss (time to the peer's loss), sample (tokens/s of text), sft (answer tokens/s),
scale (how training's cost grows with model, context and batch), prepare (MB/s, and how its cost grows with the text),
rouge (ROUGE-L a second) or startup (seconds to the first word).
Texts are novels or one folder that prepare.py made; without any it is the bundled novella, in sft the bundled questions.
Without --vs ours and the limit are measured alone. Nothing is written but --json and --picture.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from shuoshu.bench.settings import BenchSettings
from shuoshu.core.cli import command, parse
from shuoshu.core.errors import UserError

PARTS = ("train", "loss", "sample", "sft", "scale", "prepare", "rouge", "startup")


@command
def main(argv: Sequence[str]) -> None:
    settings = parse(BenchSettings, argv, __doc__)
    if not settings.words or settings.words[0] not in PARTS:
        raise UserError(f"what is to be measured? python bench.py {'|'.join(PARTS)}")
    for name in (settings.json, settings.picture):
        if name and not Path(name).absolute().parent.is_dir():
            raise UserError(f"can't write {name}: there is no folder {Path(name).parent}")
    from shuoshu.bench import chores, scale, throughput, time_to_loss
    from shuoshu.bench.measure import BenchReport

    parts = {
        "train": throughput.train,
        "sft": throughput.sft,
        "sample": throughput.sample,
        "loss": time_to_loss.loss,
    }
    parts |= {
        "scale": scale.scale,
        "prepare": chores.prepare,
        "rouge": chores.rouge,
        "startup": chores.startup,
    }
    ledger = BenchReport(settings.words[0], settings)
    with (
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder,
        ExitStack() as stack,
    ):
        try:
            parts[settings.words[0]](throughput.BenchContext(settings, ledger, Path(folder), stack))
            ledger.content["complete"] = True
        finally:  # what was found stays, whatever ended it
            if settings.json:
                ledger.write(Path(settings.json))


if __name__ == "__main__":
    sys.exit(main())
