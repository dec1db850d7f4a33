#!/usr/bin/env bash
# From a fresh machine to a model that answers questions: makes .venv, prepares the bundled novella,
# pretrains a GPT on it, fine-tunes it on the bundled questions, measures it.
# A second run skips what is done and continues what was interrupted. --page opens the page.
set -euo pipefail
cd "$(dirname "$0")"
case "$*" in "" | --page) ;; *) echo "usage: bash quickstart.sh [--page]" >&2; exit 2 ;; esac
. ./environment.sh

make_environment requirements.txt
if [ ! -f data/novella/meta.json ]; then
  say "Preparing the bundled novella"
  "$python" prepare.py
fi
if ! grep -qs '"kind": "end"' out-pretrain/log.jsonl; then
  say "Pretraining for half a minute"
  "$python" train.py --resume
fi
say "A sample of what it learned:"
"$python" sample.py --out_dir=out-pretrain --start="阿迟" --temperature=0.7 --max_new_tokens=150
if [ ! -f data/novella_qa/meta.json ]; then
  say
  say "Preparing the bundled questions"
  "$python" prepare_sft.py
fi
if ! grep -qs '"kind": "end"' out-sft/log.jsonl; then
  say "Fine-tuning for seven minutes"
  "$python" train.py config/sft.py --resume
fi
if [ ! -f out-sft/eval.json ]; then
  say "Measuring its answers: to questions it was taught, to other wordings of them, and to other questions"
  "$python" eval_metrics.py out-sft --split=all --limit=360
fi
say "Two questions about the book:"
"$python" sample.py --out_dir=out-sft --start="苗半帖是个什么样的人？" --start="墙倒的那一夜，阿迟得到了什么？"
say
if [ "$*" = --page ]; then
  exec "$python" app.py out-sft out-pretrain
fi
say "Next: .venv/bin/python app.py    (on Windows .venv\\Scripts\\python) for the page in your browser, sample.py --chat, out-sft/report.html,"
say "and README.md for your own novels and questions"
