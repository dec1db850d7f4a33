#!/usr/bin/env bash
# From a fresh machine to a model that tells stories: .venv, the bundled novella, a GPT pretrained on it, text from it.
# Run again, it skips what is done and goes on where it was interrupted.
set -euo pipefail
cd "$(dirname "$0")"
[ $# -eq 0 ] || { echo "usage: bash quickstart.sh" >&2; exit 2; }
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
say
say "Next: .venv/bin/python sample.py --start=\"…\"    (on Windows .venv\\Scripts\\python), and README.md for your own novels"
