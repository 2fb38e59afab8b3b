#!/bin/sh
# Steer a model in a CI pipeline: dry run, steer, verify, and copy the manifest to the pipeline's artefacts.
#
#   MODEL=org/name LAYERS=10-20 K=4 OUT=./edited ARTEFACTS=./artefacts sh scripts/ci_steer.sh
#
# All other options of `qkedit steer` can be set as QKEDIT_<OPTION> in the environment, such as QKEDIT_ENERGY instead of
# K; so can LAYERS and K if they are left out.
# Exit codes are qkedit's: 0 done, 1 failed, 2 usage, 3 verification mismatch, 130 interrupted.
# ARTEFACTS receives plan.json, report.json, verification.json and qkedit.json (the manifest).
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
BASE=${BASE:-$MODEL} # the model to compare the output with

# A flag would override the environment, so options that were left out have none.
set -- "$MODEL" ${LAYERS:+"--layers=$LAYERS"} ${K:+"--k=$K"}

mkdir -p "$ARTEFACTS"

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

# Headers and config only: an unknown layer, an unsupported form or a missing file stops the pipeline here.
recorded "$ARTEFACTS/plan.json" qkedit steer "$@" --dry-run --json

recorded "$ARTEFACTS/report.json" qkedit steer "$@" --out "$OUT" --json

# The manifest is kept even if the check fails, since it describes the intended output.
cp "$OUT/qkedit.json" "$ARTEFACTS/"
recorded "$ARTEFACTS/verification.json" qkedit verify "$OUT" --base "$BASE" --json

echo "steered $MODEL into $OUT; artefacts in $ARTEFACTS"
