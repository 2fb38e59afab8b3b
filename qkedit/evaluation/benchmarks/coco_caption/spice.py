"""SPICE (Anderson et al., arXiv 1607.08822): F1 of the scene graphs that its program parses from captions.

The program comes with pycocoevalcap, but the language models that it needs are part of Stanford CoreNLP. They are
searched for and never downloaded.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from qkedit.errors import QkeditError
from qkedit.evaluation.benchmarks.coco_caption.java import WHERE, java_release, program, run_java

_JAR = "spice/spice-1.0.jar"
CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
# The folders below the user's data directory: itself, and that of Stanford's archive.
PLACES = ("", "spice", "stanford-corenlp-full-2015-12-09")
# The program writes its scores with the JavaScript engine that Java had up to this release.
LAST_JAVA = 14
_WHAT = "SPICE's scene graphs"


def spice(captions: Sequence[str], references: Sequence[Sequence[str]], data: Path) -> list[float]:
    """Return SPICE of each caption, from 0 to 1.

    Args:
        captions: the tokens of each caption.
        references: the tokens of the references of the same images.
        data: the directory to search for CoreNLP's two files.

    Raises:
        QkeditError: Java, pycocoevalcap or CoreNLP is missing, Java is too new, or the program failed.
    """
    jar = program(_JAR)
    models = corenlp(data, jar.parent / "lib")
    release = java_release(_WHAT)
    if release is not None and release > LAST_JAVA:
        raise QkeditError(
            f"SPICE's program needs Java 8 to {LAST_JAVA}, and java on PATH is {release}",
            where=WHERE,
            remedy="put another one first on PATH, such as Java 11, which also works for the other metrics",
        )
    asked = [
        {"image_id": place, "test": caption, "refs": list(of_image)}
        for place, (caption, of_image) in enumerate(zip(captions, references, strict=True))
    ]
    classes = os.pathsep.join([str(jar), str(jar.parent / "lib" / "*"), *map(str, models)])
    with TemporaryDirectory(prefix="qkedit-spice-") as directory:
        given, found = Path(directory, "captions.json"), Path(directory, "scores.json")
        given.write_text(json.dumps(asked), "utf-8")
        arguments = ["-Xmx8G", "-cp", classes, "edu.anu.spice.SpiceScorer", str(given), "-out", str(found), "-silent"]
        run_java(arguments, "", _WHAT)
        try:
            rows = {row["image_id"]: float(row["scores"]["All"]["f"]) for row in json.loads(found.read_text("utf-8"))}
            scores = [rows[place] for place in range(len(asked))]
        except (OSError, ValueError, KeyError, TypeError):
            scores = [math.nan]
    if not all(map(math.isfinite, scores)):
        raise QkeditError(
            f"SPICE's program did not print one number for each of {len(asked)} captions",
            where=WHERE,
            remedy="install pycocoevalcap 1.2 and CoreNLP 3.6.0 again",
        )
    return scores


def corenlp(data: Path, installed: Path) -> list[Path]:
    """Return the files of CoreNLP.

    Args:
        data: the data directory; see `PLACES`.
        installed: the directory into which pycocoevalcap downloads them when its own SPICE is used.

    Raises:
        QkeditError: they are in neither.
    """
    for place in (*(data / name for name in PLACES), installed):
        files = [place / name for name in CORENLP]
        if all(file.is_file() for file in files):
            return files
    raise QkeditError(
        f"SPICE needs {CORENLP[0]} and its -models.jar",
        where=str(data),
        remedy="put them there, from nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip (384 MB)",
    )
