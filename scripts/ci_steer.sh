#!/bin/sh
# Steer a model in a CI pipeline: dry run, steer, verify, and leave the manifest where the pipeline collects artefacts.
#
#   MODEL=org/name LAYERS=10-20 K=4 OUT=./edited ARTEFACTS=./artefacts sh scripts/ci_steer.sh
#
# Everything else that `qkedit steer` takes can be set as QKEDIT_<OPTION> in the environment, QKEDIT_ENERGY instead of K,
# say; LAYERS and K too, where they are left out.
# Exit codes are qkedit's: 0 done, 1 failed, 2 usage, 3 verification mismatch, 130 interrupted.
# ARTEFACTS receives plan.json, report.json, verification.json and qkedit.json (the manifest).
set -eu

MODEL=${MODEL:-demo}
OUT=${OUT:-./edited}
ARTEFACTS=${ARTEFACTS:-./artefacts}
BASE=${BASE:-$MODEL} # what the output is compared with

# A flag would win over the environment, so there is none for what was left out.
set -- "$MODEL" ${LAYERS:+"--layers=$LAYERS"} ${K:+"--k=$K"}

mkdir -p "$ARTEFACTS"

# The document of a step goes into a file. If the step fails, it goes to the log too: nothing else says why.
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

# The manifest is kept even if the check after it fails: it says what was meant to be there.
cp "$OUT/qkedit.json" "$ARTEFACTS/"
recorded "$ARTEFACTS/verification.json" qkedit verify "$OUT" --base "$BASE" --json

echo "steered $MODEL into $OUT; artefacts in $ARTEFACTS"
