# Sourced by quickstart.sh and test.sh: `make_environment FILE` leaves .venv with what a requirements file names, and $python.
# PYTHON chooses the interpreter, TORCH_INDEX the place of torch's CPU build. Mirrors are taken from pip's own settings.

tool=pip
if command -v uv >/dev/null 2>&1; then tool=uv; fi

say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

find_python() {
  local name
  for name in ${PYTHON:-python3 python python3.14 python3.13 python3.12 python3.11 python3.10}; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
      printf '%s' "$name"
      return
    fi
  done
  die "no Python 3.10 or newer found: install one (python.org, or your system's python3), or name it: PYTHON=/path/to/python3 bash $0"
}

pip_setting() { # what pip would use: its environment variable, else its configuration
  local variable="PIP_$(printf '%s' "$1" | tr 'a-z-' 'A-Z_')"
  printf '%s' "${!variable:-$("$base" -m pip config get "global.$1" 2>/dev/null || "$base" -m pip config get "install.$1" 2>/dev/null || true)}" | tr '\n' ' '
}

install() { # with uv where it is there, else with pip
  if [ "$tool" = uv ]; then uv pip install -q --python "$python" "$@"; else "$python" -m pip install -q --disable-pip-version-check "$@"; fi
}

wants_cpu_torch() {
  [ "$(uname -s)" = Linux ] && [ ! -e /proc/driver/nvidia/version ] && ! nvidia-smi -L >/dev/null 2>&1
}

install_cpu_torch() { # from a folder of wheels that pip is set to, else from torch's own index; a failure is no error
  local torch
  torch=$(grep '^torch' requirements.txt)
  "$python" -c 'import torch' >/dev/null 2>&1 && return
  say "No NVIDIA driver here: looking for the CPU build of torch (0.2 GB instead of 3)"
  install --no-index --no-deps "$torch" >/dev/null 2>&1 && return
  install --no-deps --index-url "${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" "$torch" >/dev/null 2>&1 && return
  say "It can't be had from here (TORCH_INDEX=URL names a mirror): taking torch with CUDA from your usual index"
}

make_environment() {
  local wanted=$1 stamp base
  stamp=.venv/have-$wanted
  if [ -x .venv/Scripts/python.exe ]; then python=.venv/Scripts/python.exe; else python=.venv/bin/python; fi
  if "$python" -c '' 2>/dev/null && cat requirements*.txt | cmp -s - "$stamp"; then
    return
  fi
  base=$(find_python) || exit 1
  if ! "$python" -c '' 2>/dev/null; then
    say "Making the environment .venv with $("$base" --version) and $tool"
    rm -rf .venv
    if [ "$tool" = uv ]; then
      uv venv -q --python "$base" .venv || die "uv could not make .venv"
    else
      "$base" -m venv .venv || die "Python's venv is missing: on Debian or Ubuntu, apt install python3-venv"
    fi
    [ -x .venv/Scripts/python.exe ] && python=.venv/Scripts/python.exe
  fi
  if [ "$tool" = uv ]; then
    local index extra links
    index=$(pip_setting index-url) extra=$(pip_setting extra-index-url) links=$(pip_setting find-links)
    [ -n "${index// /}" ] && export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-${index// /}}"
    [ -n "${extra// /}" ] && export UV_INDEX="${UV_INDEX:-$extra}" UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"
    [ -n "${links// /}" ] && export UV_FIND_LINKS="${UV_FIND_LINKS:-$(printf '%s' $links | tr ' ' ',')}"
  fi
  wants_cpu_torch && install_cpu_torch
  say "Installing $wanted"
  install -r "$wanted" || die "installing $wanted failed: see above; behind a firewall set a mirror (pip config set global.index-url URL) and run this again"
  cat requirements*.txt >"$stamp"
}
