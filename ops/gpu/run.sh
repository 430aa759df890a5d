#!/usr/bin/env bash
# Facts, probes, tests and bench on a GPU machine, with its own Python and torch and without a network:
#   bash clipfleet-gpu/src/ops/gpu/run.sh 1      then 2, then 3; each ends within 10 minutes
# 1: the machine, its torch, known faults. 2: tests/gpu and doctor. 3: the bench.
# The other steps run also if one fails; the exit code is the number of failed steps.
# With --dry after the number it runs on a CPU, small, and only collects the tests.
# Folders: WHEELS (of `make gpu-bundle`), VENV (made once), OUT (files to keep).
set -u
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
wheels=$(realpath -m "${WHEELS:-$root/../wheels}")
venv=${VENV:-/tmp/clipfleet-gpu-venv}
out=$(realpath -m "${OUT:-/tmp/clipfleet-gpu-out}")
dry=${2:+--dry}
python=$venv/bin/python
export PYTHONUNBUFFERED=1
# Machines whose memory grows on demand report little of it at first.
[ -n "$dry" ] || export CLIPFLEET_MAX_MEMORY_BYTES=${CLIPFLEET_MAX_MEMORY_BYTES:-$((100 << 30))}
mkdir -p "$out" && cd "$root" || exit 100
failed=0

step() {  # SECONDS TITLE COMMAND...
  printf '\n=== %s (after %d s)\n' "$2" "$SECONDS"
  timeout --foreground "$1" "${@:3}" || { echo "*** ended with $?"; failed=$((failed + 1)); }
}

set_up() {
  local base=${PYTHON:-python3} site program
  rm -rf "$venv"
  "$base" -m venv --without-pip "$venv" || return
  site=$("$python" -c 'import site; print(site.getsitepackages()[0])')
  # The machine's own packages, with its torch, after the wheels.
  "$base" -c 'import sys; print(*(path for path in sys.path if "-packages" in path), sep="\n")' >"$site/machine.pth"
  printf '%s\n' "$root/producer" "$root/worker" "$root" >"$site/ours.pth"
  if compgen -G "$wheels/*.whl" >/dev/null; then
    "$base" -m pip --python "$python" install --quiet --no-index --no-deps --no-compile "$wheels"/*.whl || return
  fi
  for program in clipfleet:clipfleet clipfleet-worker:clipfleet_worker; do
    printf '#!%s\nimport sys\nfrom %s.__main__ import main\nsys.exit(main())\n' "$python" "${program#*:}" \
      >"$venv/bin/${program%:*}"
    chmod +x "$venv/bin/${program%:*}"
  done
  touch "$venv/ready"
}

if [ ! -e "$venv/ready" ]; then
  echo "=== set up"
  set_up || exit 100
fi

case ${1:-} in
  1)
    step 60 facts "$python" -m ops.gpu.probe facts $dry
    "$python" -m pip list --format=freeze >"$out/packages.txt" 2>/dev/null ||
      "${PYTHON:-python3}" -m pip list --format=freeze >"$out/packages.txt"  # for `make gpu-bundle`, --has
    step 240 'torch by itself' "$python" -m ops.gpu.probe rates $dry
    step 250 'known faults' "$python" -m ops.gpu.probe failed_capture unload handle $dry
    ;;
  2)
    step 360 tests "$python" -m pytest tests/gpu -q -rA -W default -p no:cacheprovider \
      --ignore tests/gpu/test_worker.py ${dry:+--collect-only}
    step 150 'a whole worker' "$python" -m pytest tests/gpu/test_worker.py -q -W default -p no:cacheprovider \
      ${dry:+--collect-only}
    step 80 doctor env CLIPFLEET_MODELS=demo "$venv/bin/clipfleet-worker" up --no-worker --dir "$out/service" -- \
      "$venv/bin/clipfleet-worker" doctor
    ;;
  3)
    step 590 bench "$python" -m ops.bench.gpu --rounds 3 --passes 60 --json "$out/gpu.json" $dry
    ;;
  *)
    sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
    ;;
esac
printf '\n=== done after %d s, %d failed; files in %s\n' "$SECONDS" "$failed" "$out"
exit "$failed"
