"""Measures a model on text (perplexity) or on questions (ROUGE-L, exact match, accuracy, F1).

Reports how much the model copies from its training text, and compares its answers with TF-IDF
look-ups. Writes eval.json, eval_answers.jsonl and report.html into the model's folder.

python eval_metrics.py [OUT_DIR] [--compare=OTHER] [--split=SPLIT] [--data=FOLDER] [--key=value ...]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from shuoshu.core.cli import command, parse
from shuoshu.core.command_settings import EvalSettings
from shuoshu.core.errors import UserError
from shuoshu.core.out_dirs import newest_model


@command
def main(argv: Sequence[str]) -> int:
    settings = parse(EvalSettings, argv, __doc__)
    if len(settings.out_dirs) > 1:
        raise UserError(
            "name one model to measure, and others to compare it with as"
            f" --compare={settings.out_dirs[1]}"
        )
    out_dir = Path(settings.out_dirs[0]) if settings.out_dirs else newest_model("eval_metrics.py ")
    from shuoshu.evaluation.evaluate import evaluate

    return evaluate(settings, out_dir)


if __name__ == "__main__":
    sys.exit(main())
