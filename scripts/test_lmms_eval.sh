#!/bin/sh
# Run a task of the miniature world in lmms-eval itself, with a plug-in, and compare every answer with `generate`.
#     scripts/test_lmms_eval.sh PYTHON
# PYTHON is the interpreter of an environment with qkedit and its tests that may be changed. The dependencies of lmms-eval
# are installed one by one, since they would bring another torch, and torchvision for CUDA.
set -eu
case "${1:-}" in
-h | --help)
    sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0"
    exit
    ;;
-* | '')
    echo "error: name the interpreter as the only argument; see --help." >&2
    exit 2
    ;;
esac
cd "$(dirname "$0")/.."
python=$1
"$python" -m pip install -q --no-deps lmms-eval==0.7.3 antlr4-python3-runtime==4.13.2 av==15.1.0 wandb==0.25.0 \
    aiohappyeyeballs aiohttp aiosignal attrs certifi chardet charset-normalizer colorama DataProperty datasets dill einops \
    et-xmlfile evaluate frozenlist ftfy idna jsonlines latex2sympy2-extended loguru lxml math-verify mbstrdecoder \
    multidict multiprocess numexpr opencv-python-headless openpyxl pandas pathvalidate portalocker propcache pyarrow \
    pytablewriter python-dateutil python-dotenv pytz qwen-vl-utils requests sacrebleu scikit-learn sentencepiece six \
    sympy tabledata tabulate tcolorpy tenacity threadpoolctl tiktoken tqdm-multiprocess typepy tzdata urllib3 xxhash \
    yarl zss zstandard
OMP_NUM_THREADS=1 "$python" -m pytest -q -n 0 -p no:cacheprovider -rA tests/integrations/test_lmms_eval.py -k itself
