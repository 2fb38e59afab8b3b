#!/bin/sh
# Test a server in a CI pipeline: start it, wait until it is ready, ask about an image, check the answer, stop it.
#
#   MODEL=./edited IMAGE=street.jpg PROMPT="Is there a bus?" EXPECT="^(Yes|No)" sh scripts/smoke_serve.sh
#
# EXPECT is a regular expression for the answer; without it, any answer that is not empty passes.
# For the embedded model (MODEL=demo) IMAGE and PROMPT may be left out. WAIT is the time limit for loading in seconds (600).
# All other options of `qkedit serve` can be set as QKEDIT_<OPTION> in the environment: with QKEDIT_PLUGIN=scr, the
# server runs SCR, and the script checks that it acted. QKEDIT_API_KEY is sent with requests.
# Exit codes: 0 passed, 1 failed, 2 IMAGE is missing, else the exit code of `qkedit serve`.
# ARTEFACTS receives serve.json (the server's document when it was ready), serve.log and answer.json.
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
ARTEFACTS=${ARTEFACTS:-./artefacts}
PYTHON=${PYTHON:-python3}

# Before the model is loaded, which may take minutes.
if [ "$MODEL" != demo ] && [ -z "${IMAGE:-}" ]; then
    echo "error: IMAGE: no image is named; name one that the model can be asked about." >&2
    exit 2
fi
if [ -n "${IMAGE:-}" ] && [ ! -r "$IMAGE" ]; then
    echo "error: IMAGE: $IMAGE cannot be read; check the path." >&2
    exit 2
fi

mkdir -p "$ARTEFACTS"
: >"$ARTEFACTS/serve.json"

qkedit serve "$MODEL" --port "${PORT:-0}" --json >"$ARTEFACTS/serve.json" 2>"$ARTEFACTS/serve.log" &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM

# The document is written when the model is loaded, has answered once, and the port is open.
left=${WAIT:-600}
until grep -q '"url"' "$ARTEFACTS/serve.json"; do
    if ! kill -0 "$server" 2>/dev/null; then
        cat "$ARTEFACTS/serve.json" "$ARTEFACTS/serve.log" >&2
        wait "$server" || exit $?
        exit 1
    fi
    if [ "$left" -le 0 ]; then
        echo "error: $MODEL is not ready after ${WAIT:-600} seconds." >&2
        exit 1
    fi
    left=$((left - 1))
    sleep 1
done

MODEL="$MODEL" IMAGE="${IMAGE:-}" PROMPT="${PROMPT:-}" EXPECT="${EXPECT:-.}" "$PYTHON" - "$ARTEFACTS" <<'EOF'
import base64
import io
import json
import os
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

artefacts = Path(sys.argv[1])
served = json.loads((artefacts / "serve.json").read_text())
prompt = os.environ["PROMPT"]
if os.environ["IMAGE"]:
    image = Path(os.environ["IMAGE"]).read_bytes()
else:  # MODEL=demo
    from PIL import Image

    from qkedit.demo.scenes import CAPTION_PROMPT, make_scenes

    file = io.BytesIO()
    Image.fromarray(next(iter(make_scenes(1, seed=1))).image).save(file, "png")
    image, prompt = file.getvalue(), prompt or CAPTION_PROMPT


def ask(messages):
    body = {"model": served["model"], "messages": messages, "max_tokens": 64, "temperature": 0}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('QKEDIT_API_KEY', '')}"}
    request = urllib.request.Request(served["url"] + "/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


url = "data:image/png;base64," + base64.b64encode(image).decode()
parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt or "Please describe this image in detail."}]
try:
    answer = ask([{"role": "user", "content": parts}])
except urllib.error.HTTPError as error:
    sys.exit(f"error: the server refuses the question with status {error.code}: {error.read().decode()}")
(artefacts / "answer.json").write_text(json.dumps(answer, indent=2) + "\n")
text = answer["choices"][0]["message"]["content"].strip()
print(text)
if not re.search(os.environ["EXPECT"], text):
    sys.exit(f"error: the answer does not match {os.environ['EXPECT']!r}.")
acted = (answer["usage"]["qkedit"]["report"] or {"plugins": {}})["plugins"]
for plugin in served["plugins"]:
    if plugin["name"] not in acted:
        sys.exit(f"error: the server runs {plugin['name']}, but it did not act.")
try:
    ask([])
except urllib.error.HTTPError as error:
    if error.code != 400:
        sys.exit(f"error: a request without messages is answered with status {error.code}.")
else:
    sys.exit("error: a request without messages is answered.")
EOF

trap - EXIT
kill "$server"
wait "$server" || {
    code=$?
    echo "error: the server was told to stop, and ended with code $code." >&2
    exit 1
}
echo "$MODEL serves; artefacts in $ARTEFACTS"
