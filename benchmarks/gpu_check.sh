#!/usr/bin/env bash
# Builds, tests and measures ecgfast on this machine's GPU, with nothing to download, in at most 20 minutes.
#
#   benchmarks/gpu_check.sh [--dry-run] [--only=PART,...] [RESULTS]
#
# Leaves <gpu>-<date>.json and .md in RESULTS (benchmarks/results). Fails if any part did; the others run all
# the same. Needs nvcc, torch with CUDA and Python >= 3.11.
#   PYTHON=python3    the Python that has torch
#   WHEELS=<folder>   wheels to install missing packages from
# Parts: packages, build, cuda-tests, memcheck, racecheck, ops, step, tests.
# --dry-run does on the CPU what it can of every part, with tiny sizes, and builds and installs nothing.
# shellcheck disable=SC2317  # parts are called by name
set -euo pipefail

dry=false only='' results=''
for argument in "$@"; do
  case $argument in
    --dry-run) dry=true ;;
    --only=*) only=,${argument#--only=}, ;;
    -*) echo "gpu_check: unknown option $argument" >&2; exit 2 ;;
    *) results=$(realpath -m "$argument") ;;
  esac
done
cd "$(dirname "$0")/.."
: "${results:=$PWD/benchmarks/results}"
# The program itself: the sanitizers should not follow a launcher.
PYTHON=$("${PYTHON:-python3}" -c 'import sys; print(sys.executable)')
readonly BUDGET=1200
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/logs" "$work/ops"
parts=$work/parts.tsv
: >"$parts"
failures=0

chosen() { [[ -z $only || $only == *,$1,* ]]; }

# part NAME SECONDS COMMAND...: runs a part with its output in a log, within its time and what is left of all.
part() {
  local name=$1 limit=$2 status=0 begin=$SECONDS left=$((BUDGET - SECONDS))
  shift 2
  if ! chosen "$name"; then return; fi
  if ((left < limit)); then limit=$((left > 1 ? left : 1)); fi
  echo "== $name"
  timeout --kill-after=10 "$limit" "$@" >"$work/logs/$name.log" 2>&1 || status=$?
  local result="ok"
  if ((status == 124 || status == 137)); then result="out of time"; elif ((status)); then result="failed ($status)"; fi
  if ((status)); then
    failures=$((failures + 1))
    tail -n 30 "$work/logs/$name.log"
  fi
  local last
  last=$(grep -v '^[[:space:]]*$' "$work/logs/$name.log" | tail -n 1 | tr '\t' ' ' || true)
  echo "   $result, $((SECONDS - begin)) s: $last"
  printf '%s\t%s\t%s\t%s\n' "$name" "$result" "$((SECONDS - begin))" "$last" >>"$parts"
}

skip() {
  if ! chosen "$1"; then return; fi
  echo "== $1"
  echo "   skipped: $2"
  printf '%s\tskipped\t0\t%s\n' "$1" "$2" >>"$parts"
}

install_packages() {
  local missing
  missing=$("$PYTHON" benchmarks/gpu_check.py missing)
  if [[ -z $missing ]]; then echo "nothing is missing"; return; fi
  if $dry; then echo "would install: $missing"; return; fi
  if [[ -z ${WHEELS:-} ]]; then echo "missing: $missing; give WHEELS=<folder of wheels>"; return 1; fi
  local requirements
  mapfile -t requirements < <(tr ' ' '\n' <<<"$missing")
  "$PYTHON" -m pip install --quiet --no-index --find-links "$WHEELS" "${requirements[@]}"
  echo "installed: $missing"
}

build() {
  local capability
  capability=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
  ECGFAST_CUDA_ARCHS=$capability "$PYTHON" setup.py -q build_ext --inplace
  echo "built for sm_$capability"
}

# The CUDA cases of the op tests under a tool of compute-sanitizer, for ecgfast's kernels alone. Without
# torch's cache each tensor is an allocation of its own, whose ends memcheck guards; graphs need the cache.
sanitize() {
  local tool=$1 filter=() help
  help=$(compute-sanitizer --help)
  if [[ $help == *--kernel-regex* ]]; then filter=(--kernel-regex kns=ecgfast); fi
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 "${filter[@]}" \
    "$PYTHON" -m pytest -q -p no:cacheprovider -m "cuda and not large" tests/ops \
    --ignore tests/ops/test_cuda_graphs.py
}

tests() {
  local workers=()
  if "$PYTHON" -c 'import xdist' 2>/dev/null; then workers=(-n "$(($(nproc) < 8 ? $(nproc) : 8))"); fi
  "$PYTHON" -m pytest -q -p no:cacheprovider "${workers[@]}" "$@"
}

bench_ops() {
  "$PYTHON" -m ecgfast bench "$@"
  local files=("$work"/ops/*.json)
  echo "results: ${#files[@]}"
}

bench_step() { "$PYTHON" -m benchmarks.training.step --json "$work/step.json" "$@"; }
export -f install_packages build sanitize tests bench_ops bench_step
export PYTHON WHEELS dry work
shell=(bash -euo pipefail -c '"$@"' bash)

part packages 120 "${shell[@]}" install_packages
if $dry; then
  skip build "a dry run tests what is built"
  part cuda-tests 120 "$PYTHON" -m pytest -q -p no:cacheprovider \
    tests/ops/test_cuda_graphs.py tests/training/test_cuda_step.py tests/ops/test_random.py
  for tool in memcheck racecheck; do skip "$tool" "a dry run has no card"; done
  part ops 120 "${shell[@]}" bench_ops masks --quick --variants official ecgfast --pages plain \
    --json "$work/ops/masks.json"
  part step 120 "${shell[@]}" bench_step --preset tiny --forms official ecgfast --rounds 1 --steps 1
  skip tests "a dry run is one of them"
else
  part build 240 "${shell[@]}" build
  part cuda-tests 240 "$PYTHON" -m pytest -q -p no:cacheprovider -m cuda tests
  for tool in memcheck racecheck; do
    if command -v compute-sanitizer >/dev/null; then
      part "$tool" 150 "${shell[@]}" sanitize "$tool"
    else
      skip "$tool" "compute-sanitizer is not installed"
    fi
  done
  part ops 420 "${shell[@]}" bench_ops all --device cuda --dtypes bfloat16 --budget 3 --json-dir "$work/ops"
  part step 180 "${shell[@]}" bench_step --device cuda --preset paper
  # Last, what needs no card: a machine with few cores may have no time left for it.
  part tests 480 "${shell[@]}" tests tests -m "not cuda"
fi
"$PYTHON" benchmarks/gpu_check.py report "$work" "$results"
exit "$((failures > 0))"
