"""Measures a model: perplexity, and of a fine-tuned one its answers: ROUGE-L, exact match, accuracy, F1, what it copied, beside look-ups.

python eval_metrics.py [OUT_DIR] [--compare=OTHER] [--split=train|val|test|untaught|all] [--data=FOLDER] [--key=value ...]
Writes eval.json, eval_answers.jsonl and report.html into the out-dir.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from shuoshu.core.cli import command, parse
from shuoshu.core.errors import UserError
from shuoshu.core.run_log import newest_out_dir
from shuoshu.core.settings import EvalSettings


@command
def main(argv: Sequence[str]) -> int:
    settings = parse(EvalSettings, argv, __doc__)
    if len(settings.out_dirs) > 1:
        raise UserError(
            f"one model is measured; set others beside it with --compare={settings.out_dirs[1]}"
        )
    out_dir = Path(settings.out_dirs[0]) if settings.out_dirs else newest_out_dir()
    from shuoshu.evaluation.evaluate import evaluate

    return evaluate(settings, out_dir)


if __name__ == "__main__":
    sys.exit(main())
