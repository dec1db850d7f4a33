"""Measures how well labels are learned: cross-validation of one prompt, or of several side by side.

For each fold of the table it prepares the data, trains a model on the other folds and measures it
on this one, beside linear models. Writes results.md, results.json and results.png.

python experiment.py FILE --question="…{text}…" [--question=…] --answer="{label}" [--key=value ...]
The same command continues an interrupted experiment.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from shuoshu.core.cli import command, parse
from shuoshu.experiments.settings import ExperimentSettings


@command
def main(argv: Sequence[str]) -> None:
    settings = parse(ExperimentSettings, argv, __doc__)
    from shuoshu.experiments.child import run_child
    from shuoshu.experiments.run import run_experiment

    run_experiment(settings, argv, run_child)


if __name__ == "__main__":
    sys.exit(main())
