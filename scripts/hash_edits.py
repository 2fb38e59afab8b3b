"""Hash the output of every edit of every family, to check that two versions of the code write the same bytes.

    python scripts/hash_edits.py before.json        # in one checkout
    python scripts/hash_edits.py after.json         # in the other; copy this file into its scripts/ if it is older
    python scripts/hash_edits.py --compare before.json after.json

Each of the tiny checkpoints that the tests build (all recorded families, published and module names, bfloat16 and
float32) is edited in nine ways: by number and by energy of modes, in three channels, with both controls, some heads.
The hash covers all safetensors files and the index of an output; a refused edit is recorded as `refused`.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import qkedit
from tests import tiny_configs, tiny_models

# Earlier versions call the share of a mode that stays `residual`.
KEPT = "retain" if "retain" in inspect.signature(qkedit.steer).parameters else "residual"
EDITS: dict[str, dict[str, Any]] = {
    "plain": {"k": 2},
    "energy": {"energy": 0.5},
    "kept": {"k": 3, KEPT: 0.25, "compute_dtype": "float64"},
    "symmetric": {"k": 2, "channel": "symmetric"},
    "antisymmetric": {"k": 2, "channel": "antisymmetric"},
    "index": {"k": 2, "control": "index", "seed": 3},
    "norm": {"k": 2, "control": "norm", "seed": 3},
    "symmetric index": {"k": 1, "channel": "symmetric", "control": "index"},
    "heads": {"k": 1, "heads": "1-2"},
}


def hashes() -> dict[str, str]:
    """Return the SHA-256 of every edit's weights by `family, names, dtype, edit`."""
    torch.set_num_threads(1)
    found = {}
    variants = [(family, True) for family in {**tiny_configs.FAMILIES, **tiny_configs.TEXT_MODELS}]
    variants += [(family, False) for family in tiny_configs.RENAMED]
    for family, published in variants:
        for dtype in ("bfloat16", "float32"):
            with tempfile.TemporaryDirectory() as work:
                base = tiny_models.build(family, Path(work, "base"), dtype=dtype, published=published)
                for name, options in EDITS.items():
                    key = f"{family}, {'published' if published else 'module'} names, {dtype}, {name}"
                    found[key] = _hash(base, Path(work, name), options)
    return found


def _hash(base: Path, out: Path, options: dict[str, Any]) -> str:
    try:
        qkedit.steer(str(base), out=out, layers="all", fsync=False, allow_text_only=True, **options)
    except qkedit.QkeditError:
        return "refused"
    digest = hashlib.sha256()
    for file in sorted(out.glob("*.safetensors*")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT", help="file to write the hashes into")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"), help="compare two such files")
    arguments = parser.parse_args()
    if (arguments.out is None) == (arguments.compare is None):
        parser.error("name either a file to write, or two files after --compare")
    if arguments.compare:
        before, after = (json.loads(file.read_text("utf-8")) for file in arguments.compare)
        different = [key for key in before if before[key] != after.get(key)]
        print(f"{len(before) - len(different)} of {len(before)} edits have the same bytes")
        for key in different:
            print(f"{key}: {before[key][:12]} is {after.get(key, 'missing')[:12]}")
        sys.exit(bool(different))
    arguments.out.write_text(json.dumps(hashes(), indent=1), "utf-8")


if __name__ == "__main__":
    main()
