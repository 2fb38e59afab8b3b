"""Compare the caption scores with pycocoevalcap itself, on generated captions, including unusual ones.

    pip install '.[coco-caption]' && python scripts/check_caption_scores.py            # 3,000 images
    python scripts/check_caption_scores.py --images 24 --seed 7 --write official_captions.json

Tokens, BLEU-1 to 4, ROUGE-L, CIDEr-D and METEOR of each image and of all of them must be equal to 1e-12 (SPICE is not
compared: its program needs a download of CoreNLP 3.6.0, 384 MB, and has never run here). If Java is missing, the
script tries to install it by apt-get; without Java or pycocoevalcap the check is skipped with a message. `--write`
stores the official figures for a test without Java.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from qkedit.evaluation.benchmarks.coco_caption import meteor, scoring, tokens
from qkedit.evaluation.files.records import Answer, Question

CLOSE = 1e-12
JAVA = "openjdk-17-jre-headless"
PLAIN = str.split("""
    a the two cat dog man woman horse bus street field grass red brown large small on in with next to riding sits
    sitting plays runs standing table pizza and of is are near his her ball frisbee water boat while
""")
ODD = str.split("""
    it's don't can't gonna U.S. Inc. etc. Mr. Dr. e.g. 1/2 3.5 1,000 $5 £3 €4 50% #tag @you a_b well-known (red) [blue]
    {green} "quoted" “curly” ‘single’ … ... -- — – - . ! ? , ; : '' `` ||| & &amp; <p> </p> < > http://a.b/c?d=e café
    naïve Ünïcode 日本語 мир 😀 👩‍👩‍👧 A.B.C. O'Neil \\ / * + = ~ ^ ` ´
""")
# Characters that separate words or are ignored, and do not end a line for the official tokenizer.
ODD += ["1 1/2", "a\tb", "a\xa0b", "a\u3000b", "a\u200bb", "\ufeffa", "a\x1cb", "a\x85b", "a\x00b", "a\x7fb", "a\nb"]
# Characters that end a line, so that the official script assigns all later captions to other images.
SEPARATORS = ("\r", "\r\n", "\v", "\f", "\u2028", "\u2029")


def made_captions(images: int, seed: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return references and one caption per image: some are equal, some unusual, some empty, some long."""
    random = Random(seed)
    references, captions = {}, {}
    for image in range(images):
        about = random.sample(PLAIN, 12)

        def sentence(about: list[str] = about, odd: float = random.choice((0.0, 0.0, 0.1, 0.6))) -> str:
            words = [
                random.choice(ODD if random.random() < odd else about if random.random() < 0.8 else PLAIN)
                for _ in range(random.choice((0, 1, 2, 3, 6, 8, 8, 10, 10, 10, 12, 15, 40)))
            ]
            text = " ".join(words) + random.choice(("", ".", " .", "!", "..."))
            return random.choice((text, text.capitalize(), text.upper() if odd else text))

        own = [sentence() for _ in range(random.choice((1, 2, 4, 5, 5, 5, 7)))]
        near = random.choice(own).split()
        references[str(image)] = own
        captions[str(image)] = random.choice(
            (
                random.choice(own),
                " ".join(word for word in near if random.random() < 0.8),
                " ".join(random.sample(near, len(near))),
                sentence(),
                sentence(),
            )
        )
    return references, captions


def official(references: dict[str, list[str]], captions: dict[str, str]) -> dict[str, Any]:
    """Return pycocoevalcap's tokens and figures, for all images together and for each."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    truth = PTBTokenizer().tokenize({image: [{"caption": one} for one in own] for image, own in references.items()})
    said = PTBTokenizer().tokenize({image: [{"caption": text}] for image, text in captions.items()})
    total, each = Bleu(4).compute_score(truth, said, verbose=0)
    figures = {f"bleu_{order + 1}": (total[order], each[order]) for order in range(4)}
    for name, scorer in (("rouge_l", Rouge()), ("cider", Cider()), ("meteor", Meteor())):
        figures[name] = scorer.compute_score(truth, said)
    return {
        "references": truth,
        "captions": {image: texts[0] for image, texts in said.items()},
        "figures": {
            name: {"all": float(value), "each": list(map(float, one))} for name, (value, one) in figures.items()
        },
    }


def scored(references: dict[str, list[str]], captions: dict[str, str]) -> Any:
    """Return qkedit's score of the same captions."""
    questions = [Question(image, "", "", tuple(own), group=image) for image, own in references.items()]
    answers = [Answer(image, text) for image, text in captions.items()]
    return scoring.score(questions, answers, split="made", also=("meteor",))


def differences(found: Any, expected: dict[str, Any]) -> dict[str, float]:
    """Return by figure the largest difference from the official one, over all images and their total."""
    far = {}
    for metric in scoring.METRICS:
        if metric.name in expected["figures"]:
            own = [metric.value_of([item]) for item in found.items]
            of = expected["figures"][metric.name]
            far[metric.name] = float(
                np.abs(np.array([*own, found.metrics[metric.name]]) - [*of["each"], of["all"]]).max()
            )
    return far


def separators_are_spaces(captions: dict[str, str]) -> bool:
    """Return whether captions with separators inside have the same tokens, per image, as with spaces instead."""
    random = Random(0)
    broken = [
        random.choice(SEPARATORS).join(text.split(" ")) + random.choice(SEPARATORS) for text in captions.values()
    ]
    return tokens.ptb(broken) == tokens.ptb([f"{text} " for text in captions.values()])


def main() -> int:
    """Compare the scores, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="write captions and official figures into this file")
    options = parser.parse_args()
    missing = what_is_missing()
    if missing:
        print(f"SKIPPED, nothing was checked: {missing}", file=sys.stderr)
        return 0
    references, captions = made_captions(options.images, options.seed)
    expected = official(references, captions)
    found = scored(references, captions)
    alike = tokens.ptb(list(captions.values())) == list(expected["captions"].values())
    far = differences(found, expected)
    apart = separators_are_spaces(captions)
    for name, value in far.items():
        print(f"{name:8}  {expected['figures'][name]['all']:.6f}  largest difference {value:.1e}")
    print(f"tokens of {len(captions)} captions: {'equal' if alike else 'NOT EQUAL'}")
    print(f"separators within captions: {'shift nothing' if apart else 'SHIFT CAPTIONS'}")
    if options.write:
        aligned = meteor.alignments(list(expected["captions"].values()), list(expected["references"].values()))
        expected["meteor_alignments"] = [list(row) for row in aligned]
        made = {"made": {"references": references, "captions": captions}, "official": expected}
        options.write.write_text(json.dumps(made) + "\n", "utf-8")
    return 0 if alike and apart and max(far.values()) <= CLOSE else 1


def what_is_missing() -> str:
    """Return the reason why the check cannot be made, after an attempt to install Java; empty if it can."""
    if find_spec("pycocoevalcap") is None:
        return "pycocoevalcap is not installed (pip install 'qkedit[coco-caption]')"
    if shutil.which("java") is None and shutil.which("apt-get") and os.geteuid() == 0:
        for command in (["apt-get", "update"], ["apt-get", "install", "--yes", JAVA]):
            subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    return "" if shutil.which("java") else f"there is no Java, and it could not be installed (apt-get install {JAVA})"


if __name__ == "__main__":
    sys.exit(main())
