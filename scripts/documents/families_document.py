"""Write docs/families.md: the structure that qkedit finds in a tiny checkpoint of each family.

    python scripts/documents/families_document.py            write the file
    python scripts/documents/families_document.py --check    exit with 1 if it is stale

Every line is read from a checkpoint that the tests edit and load, so nothing is listed that is not tested.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from qkedit.checkpoint.architecture.heads import AttentionStack  # noqa: E402
from qkedit.checkpoint.architecture.layers import attention_stack  # noqa: E402
from qkedit.checkpoint.checkpoint import open_checkpoint  # noqa: E402
from qkedit.checkpoint.io.source import LocalFiles  # noqa: E402
from tests import tiny_configs, tiny_models  # noqa: E402
from tests.families import published  # noqa: E402

DOCUMENT = ROOT / "docs" / "families.md"
HEADER = """\
# Model families

Written by `scripts/documents/families_document.py` from tiny checkpoints that the tests steer and run; do not edit.
Tested with transformers {version}. A family with two names was saved under both: as published, and as current
transformers names its modules. Other models with query and key projections in one of these forms can be edited too:
[adding a model](adding-a-model.md) says when they need a record.

* *form*: `separate` means separate projections; `gated` has a gate's rows after each query head's; in the other forms
  queries and keys share one fused tensor, and only the query rows change.
* *norm*: the norm that is applied to queries and keys after the projection, per head unless noted otherwise; its gains
  are folded into the product. `l2` has no gains, `one-plus rms` multiplies by 1 + gain.
* *bias*: whether queries and keys have a bias; it is never changed.
* *skipped*: layers without keys of their own. Every report names them.

| family | `model_type` | query tensor of layer N | form | norm | bias | positions | skipped | tested |
|---|---|---|---|---|---|---|---|---|
"""


def document(version: str) -> str:
    """Return the document for a version of transformers."""
    return HEADER.format(version=version) + "".join(f"{row}\n" for row in sorted(set(_rows()), key=str.casefold))


def _rows() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        for family in tiny_configs.FAMILIES:
            stacks = [_built(family, Path(directory) / family, published=True)]
            if family in tiny_configs.RENAMED:
                stacks.append(_built(family, Path(directory) / f"{family} renamed", published=False))
            yield _row(stacks, tiny_configs.FAMILIES[family]["model_type"], "loaded and run in transformers")
        for name, family in published.PUBLISHED.items():
            stack = _understood(published.written(Path(directory) / name, family))
            yield _row([stack], family.config["model_type"], f"published names: {name}")


def _built(family: str, directory: Path, *, published: bool) -> AttentionStack:
    return _understood(tiny_models.build(family, directory, published=published))


def _understood(directory: Path) -> AttentionStack:
    return attention_stack(open_checkpoint(LocalFiles(directory)))


def _row(stacks: list[AttentionStack], model_type: str, tested: str) -> str:
    layers = stacks[0].layers
    names = dict.fromkeys(re.sub(r"\.\d+\.", ".N.", stack.layers[0].query.tensor.name, count=1) for stack in stacks)
    norms = dict.fromkeys(layer.query_norm.name for layer in layers if layer.query_norm)
    cells = [
        stacks[0].family,
        f"`{model_type}`",
        "<br>".join(f"`{name}`" for name in names),
        ", ".join(dict.fromkeys(f"`{stack.layers[0].form}`" for stack in stacks)),
        ", ".join(norms) or "–",
        "yes" if layers[0].query_bias else "–",
        ", ".join(dict.fromkeys(layer.rope for layer in layers)),
        "; ".join(dict.fromkeys(skipped.reason for skipped in stacks[0].skipped)) or "–",
        tested,
    ]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Write the document, or with `--check` compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if it is stale")
    arguments = parser.parse_args()
    import transformers

    text = document(transformers.__version__)
    if arguments.check:
        if DOCUMENT.read_text(encoding="utf-8") == text:
            return 0
        print("docs/families.md is stale: run python scripts/documents/families_document.py", file=sys.stderr)
        return 1
    DOCUMENT.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
