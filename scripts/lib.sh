# Sourced by the scripts here: a virtual environment inside the checkout, with the locked versions.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
  local name
  for name in ${RELAY_PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
    if command -v "$name" >/dev/null &&
      "$name" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$name"
      return
    fi
  done
  echo "relay-capture: found no Python 3.11 or later; install one, or name it in RELAY_PYTHON" >&2
  exit 78
}

# ensure_venv LOCKFILE: make .venv and bring it to what LOCKFILE says, unless it is there already.
ensure_venv() {
  local lock=$1 stamp=.venv/.installed python wanted
  python=$(find_python)
  wanted=$(cat requirements/dev.txt requirements/runtime.txt pyproject.toml | "$python" -c \
    'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
  # What the tests need holds all that a run needs.
  if grep -qsxF -e "$lock $wanted" -e "requirements/dev.txt $wanted" "$stamp"; then return; fi
  if [ ! -x .venv/bin/python ]; then
    "$python" -m venv .venv || {
      echo "relay-capture: $python cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2
      exit 78
    }
  fi
  echo "installing locked packages into .venv …" >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
    --require-hashes -r "$lock" 1>&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
    --no-deps --no-build-isolation --editable . 1>&2
  printf '%s\n' "$lock $wanted" >"$stamp"
}
