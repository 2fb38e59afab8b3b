#!/bin/sh
# Steer a model in a CI pipeline and ship it only if it is no worse: steer, verify, drift, eval, compare, gate.
#
#   MODEL=org/name LAYERS=10-20 BENCHMARKS="pope chair" DATA=./benchmarks IMAGES=./val2014 \
#     REQUIRE="pope.adversarial.f1>=0.80 chair_s<=0.40" NO_WORSE="chair.recall:0.02" sh scripts/ci_gate.sh
#
# MODEL, LAYERS, K, OUT, ARTEFACTS and BASE are those of ci_steer.sh, which is run first.
# BENCHMARKS, DATA and IMAGES are options of `qkedit eval`. For the embedded model (MODEL=demo) they may be left out; it
# is asked about SCENES synthetic scenes (200), questions and captions.
# REQUIRE and NO_WORSE are options of `qkedit gate`, separated by spaces; the base is the baseline.
# All other options can be set as QKEDIT_<OPTION> in the environment: QKEDIT_LIMIT, QKEDIT_BATCH_SIZE,
# or QKEDIT_PLUGIN for plug-ins of the edited model.
# Exit codes are qkedit's: 0 done, 1 failed, 2 usage, 3 a check failed, 130 interrupted.
# ARTEFACTS receives the files of ci_steer.sh, and drift.json, base/ and edited/ with result.json and every answer,
# comparison.json, and comparison.md for the pull request. The base is asked only once: if the directory holds a finished
# run, for example from a cache, it is scored again without the model.
set -eu

case "${1:-}" in
-h | --help)
    sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0"
    exit
    ;;
?*)
    echo "error: $1: the script has no options; it is set by environment variables, which --help lists." >&2
    exit 2
    ;;
esac

MODEL=${MODEL:-demo}
OUT=${OUT:-./edited}
ARTEFACTS=${ARTEFACTS:-./artefacts}
BASE=${BASE:-$MODEL}
NO_WORSE=${NO_WORSE:-}
if [ -z "${REQUIRE:-}$NO_WORSE" ]; then
    NO_WORSE=pope.adversarial.f1:0.02
fi
export MODEL OUT ARTEFACTS BASE

sh "$(dirname "$0")/ci_steer.sh"

# Write the JSON document of a step into a file, and if the step fails also into the log, as it holds the reason.
recorded() {
    file=$1
    shift
    "$@" >"$file" || {
        code=$?
        cat "$file" >&2
        exit "$code"
    }
}

if [ "$MODEL" = demo ] && [ -z "${DATA:-}" ]; then
    DATA=$ARTEFACTS/scenes
    IMAGES=$DATA/images
    BENCHMARKS=${BENCHMARKS:-pope custom}
    # Scenes of a seed that neither the training nor the laboratory uses.
    "${PYTHON:-python3}" - "${SCENES:-200}" "$DATA" <<'EOF'
import sys
from pathlib import Path

from qkedit.demo.files import write_scenes
from qkedit.demo.scenes import make_scenes

write_scenes(list(make_scenes(int(sys.argv[1]), seed=3_000_000)), Path(sys.argv[2]))
EOF
fi
: "${DATA:?names the directory of the questions}" "${IMAGES:?names the directory of the images}"

# Only eval uses QKEDIT_BENCHMARK: every other command would warn of an unused variable.
ask() {
    QKEDIT_BENCHMARK=${BENCHMARKS:-pope} qkedit eval "$@" --data "$DATA" --images "$IMAGES"
}

# Drift first: it is known long before the benchmarks are finished.
recorded "$ARTEFACTS/drift.json" qkedit drift "$OUT" --base "$BASE" --images "$IMAGES" --json

ask "$BASE" --plugin none --out "$ARTEFACTS/base"
ask "$OUT" --out "$ARTEFACTS/edited"

recorded "$ARTEFACTS/comparison.json" \
    qkedit compare "$ARTEFACTS/base" "$ARTEFACTS/edited" --markdown "$ARTEFACTS/comparison.md" --json
cat "$ARTEFACTS/comparison.md"

set --
if [ -n "$NO_WORSE" ]; then
    set -- --baseline "$ARTEFACTS/base"
fi
QKEDIT_REQUIRE="${REQUIRE:-}" QKEDIT_NO_WORSE="$NO_WORSE" qkedit gate "$ARTEFACTS/edited" "$@"

echo "$OUT may be shipped; artefacts in $ARTEFACTS"
