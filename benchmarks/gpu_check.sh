#!/usr/bin/env bash
# Checks and measures ecgfast on a GPU, in two calls of at most six minutes each, with nothing to download.
#
#   benchmarks/gpu_check.sh prepare [--python=VERSION] [ARCHS]     before, on any machine with nvcc
#   benchmarks/gpu_check.sh correctness [OPTIONS] [RESULTS]        every op and pass against float64; the ops' times
#   benchmarks/gpu_check.sh training [OPTIONS] [RESULTS]           the training step's time; compute-sanitizer
#
# prepare builds the libraries for ARCHS (90) into build/gpu-check, with wheels for that Python (3.12) of the
# small packages that the checks need: bring the repository and that folder to the machine with the GPU. The
# libraries fit every Python and every torch from 2.10 on; the calls copy them into ecgfast/.
# A call leaves <gpu>-<date>-<call>.json in RESULTS (benchmarks/results), written after each part, so that a call
# cut short loses one part at most, and at the end a page of the same name. It fails if any part did; the other
# parts run all the same.
#   --dry-run         does on the CPU what it can of every part, with tiny sizes, and installs nothing
#   --only=PART,...   some of the parts
#   --plan            prints the parts and their limits in seconds
#   PYTHON=python3    the Python that has torch with CUDA
# shellcheck disable=SC2317  # parts are called by name
set -euo pipefail

dry=false plan=false only='' results='' version=3.12
call=${1:-}
case $call in
  prepare | correctness | training) shift ;;
  *) echo "gpu_check: the first argument must be prepare, correctness or training, got '$call'" >&2; exit 2 ;;
esac
for argument in "$@"; do
  case $argument in
    --dry-run) dry=true ;;
    --plan) plan=true ;;
    --only=*) only=,${argument#--only=}, ;;
    --python=*) version=${argument#--python=} ;;
    -*) echo "gpu_check: unknown option $argument" >&2; exit 2 ;;
    *) results=$argument ;;
  esac
done
[[ $call == prepare || -z $results ]] || results=$(realpath -m "$results")
cd "$(dirname "$0")/.."
# The program itself: the sanitizers should not follow a launcher.
PYTHON=$("${PYTHON:-python3}" -c 'import sys; print(sys.executable)')
# Seconds of a call, and of these for the page at its end. A CPU may be slow and busy: dry runs have longer.
readonly PREPARED=build/gpu-check PAGE=15 LONGER=$($dry && echo 5 || echo 1)
readonly BUDGET=$((360 * LONGER))

prepare() {
  # In the usual build folder, whose CPU kernels may be there already.
  local base=build/gpu-check-build
  rm -rf $base
  ECGFAST_CUDA_ARCHS=${1:-90} "$PYTHON" setup.py --quiet build --build-base $base/base --build-lib $base/lib
  if [[ ! -e $base/lib/ecgfast/libecgfast_cuda.so ]]; then
    echo "gpu_check: no CUDA library was built: prepare needs nvcc, and ARCHS such as 90" >&2
    return 1
  fi
  rm -rf $PREPARED
  mkdir -p $PREPARED
  cp $base/lib/ecgfast/libecgfast_*.so $PREPARED
  "$PYTHON" benchmarks/gpu_check.py digest >$PREPARED/sources
  local platforms=()
  for tag in manylinux_2_28 manylinux_2_17 manylinux2014 manylinux1; do platforms+=(--platform "${tag}_x86_64"); done
  "$PYTHON" -m pip --disable-pip-version-check download --quiet --only-binary=:all: --python-version "$version" \
    --implementation cp "${platforms[@]}" -d $PREPARED/wheels pytest pytest-xdist hypothesis tqdm safetensors
  du -sh $PREPARED
}

if [[ $call == prepare ]]; then
  prepare "$results"
  exit
fi

: "${results:=$PWD/benchmarks/results}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/logs" "$work/ops" "$work/site"
: >"$work/parts.tsv"
export PYTHON PREPARED dry work PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failures=0

chosen() { [[ -z $only || $only == *,$1,* ]]; }

# done_with NAME RESULT SECONDS LAST: notes what a part came to, in the results' file too.
done_with() {
  echo "   $2, $3 s: $4"
  printf '%s\t%s\t%s\t%s\n' "$@" >>"$work/parts.tsv"
  "$PYTHON" benchmarks/gpu_check.py collect "$call" "$work" "$results"
}

# part NAME SECONDS COMMAND...: runs a part with its output in a log, within its time and what is left of all.
# At its limit it is interrupted as by Ctrl-C: pytest and the sanitizers then still say what they found.
part() {
  local name=$1 limit=$2 status=0 begin=$SECONDS left=$((BUDGET - PAGE - SECONDS))
  shift 2
  if ! chosen "$name"; then return; fi
  if $plan; then printf '%s\t%s\n' "$name" "$limit"; return; fi
  limit=$((limit * LONGER))
  if ((left < limit)); then limit=$((left > 1 ? left : 1)); fi
  echo "== $name (at most $limit s)"
  timeout --signal=INT --kill-after=5 "$((limit > 5 ? limit - 5 : limit))" "$@" >"$work/logs/$name.log" 2>&1 || status=$?
  local result="ok"
  if ((status == 124 || status == 137)); then result="out of time"; elif ((status)); then result="failed ($status)"; fi
  if ((status)); then
    failures=$((failures + 1))
    tail -n 30 "$work/logs/$name.log"
  fi
  local last
  last=$(grep -v '^[[:space:]]*$' "$work/logs/$name.log" | tail -n 1 | tr '\t' ' ' || true)
  done_with "$name" "$result" "$((SECONDS - begin))" "$last"
}

skip() {
  if $plan || ! chosen "$1"; then return; fi
  echo "== $1"
  done_with "$1" skipped 0 "$2"
}

# Puts what was prepared in its place, and sees that it loads.
libraries() {
  local missing
  missing=$("$PYTHON" benchmarks/gpu_check.py missing)
  if $dry; then
    echo "would install: ${missing:-nothing}"
  else
    if [[ ! -e $PREPARED/libecgfast_cuda.so || $("$PYTHON" benchmarks/gpu_check.py digest) != $(<$PREPARED/sources) ]]; then
      echo "$PREPARED was not prepared from these sources: run benchmarks/gpu_check.sh prepare"
      return 1
    fi
    cp $PREPARED/libecgfast_*.so ecgfast/
    if [[ -n $missing ]]; then
      local requirements
      mapfile -t requirements < <(tr ' ' '\n' <<<"$missing")
      "$PYTHON" -m pip install --quiet --no-index --find-links $PREPARED/wheels --target "$work/site" "${requirements[@]}"
    fi
  fi
  "$PYTHON" benchmarks/gpu_check.py machine "$work" "$($dry && echo cpu || echo cuda)"
}

tests() { "$PYTHON" -m pytest -v -p no:cacheprovider --durations=10 "$@"; }

# Side by side where that can be: a worker takes seconds to start, and less of the GPU than there is.
tests_in_parallel() {
  local workers=()
  if "$PYTHON" -c 'import xdist' 2>/dev/null; then workers=(-n "$(($(nproc) < 4 ? $(nproc) : 4))" --dist loadfile); fi
  tests "${workers[@]}" "$@"
}

# Under a tool of compute-sanitizer, for ecgfast's kernels alone. Without torch's cache each tensor is an
# allocation of its own, whose ends memcheck guards.
sanitize() {
  local tool=$1 filter=() help
  shift
  help=$(compute-sanitizer --help)
  if [[ $help == *--kernel-regex* ]]; then filter=(--kernel-regex kns=ecgfast); fi
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 "${filter[@]}" \
    "$PYTHON" -m pytest -v -p no:cacheprovider -m "cuda and not large" "$@"
}
export -f libraries tests tests_in_parallel sanitize
shell=(bash -euo pipefail -c '"$@"' bash)

# What float64 says at the benchmarks' sizes comes first, then all other tests on the device, then times.
correctness() {
  part libraries 30 "${shell[@]}" libraries
  if $dry; then
    part numerics 70 "${shell[@]}" tests tests/ops/test_paper_sizes.py -k bfloat16
    part cuda-tests 100 "${shell[@]}" tests tests/ops/test_cuda_graphs.py tests/training/test_cuda_step.py
    part ops 120 "$PYTHON" benchmarks/gpu_check.py ops "$work" cpu positional_conv
  else
    part numerics 70 "${shell[@]}" tests -m cuda tests/ops/test_paper_sizes.py tests/ops/test_precision.py
    part cuda-tests 100 "${shell[@]}" tests_in_parallel -m cuda tests/ops tests/training/test_cuda_step.py \
      --ignore tests/ops/test_random.py \
      --deselect tests/ops/test_paper_sizes.py --deselect tests/ops/test_precision.py
    part ops 120 "$PYTHON" benchmarks/gpu_check.py ops "$work" cuda
  fi
}

training() {
  part libraries 30 "${shell[@]}" libraries
  if $dry; then
    part step 130 "$PYTHON" -m benchmarks.training.step --json "$work/step.json" \
      --preset tiny --variants official ecgfast --rounds 1 --steps 1
    for tool in memcheck racecheck; do skip "$tool" "a dry run has no card"; done
  else
    part step 130 "$PYTHON" -m benchmarks.training.step --json "$work/step.json" --device cuda --preset paper
    for tool in memcheck racecheck; do
      if $plan || command -v compute-sanitizer >/dev/null; then
        # All ops forward and backward in float32 and TF32, then odd shapes and the half precisions.
        part "$tool" 75 "${shell[@]}" sanitize "$tool" tests/ops/test_precision.py tests/ops/test_span_mask.py \
          tests/ops/test_gather_segments.py tests/ops/test_patch_embed.py tests/ops/test_positional_conv.py
      else
        skip "$tool" "compute-sanitizer is not installed"
      fi
    done
  fi
}

$call
if $plan; then
  printf '%s\t%s\n' page "$PAGE"
  exit
fi
"$PYTHON" benchmarks/gpu_check.py page "$call" "$work" "$results"
exit "$((failures > 0))"
