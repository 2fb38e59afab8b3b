"""Split captions into tokens: the official ones, by Java, or our own plain words.

Tokens are a text with single spaces between them, the input of the official scorers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from qkedit.errors import QkeditError
from qkedit.evaluation.benchmarks.coco_caption.java import WHERE, program, run_java

# Captions → the tokens of each, in the same order.
Tokenizer = Callable[[Sequence[str]], list[str]]

_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
# The tokens that the official script drops. The tokenizer writes brackets in lower case, `-lrb-`, so they stay, there
# and here.
_PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
_WORD = re.compile(r"\w+")


def words(captions: Sequence[str]) -> list[str]:
    """Return the runs of letters and digits of each caption, in lower case; no Java is needed.

    Example:
        >>> words(["A dog's ball."])
        ['a dog s ball']
    """
    return [" ".join(_WORD.findall(caption.lower())) for caption in captions]


def ptb(captions: Sequence[str]) -> list[str]:
    """Return the tokens of the Penn Treebank, in lower case and without punctuation, as pycocoevalcap does.

    Raises:
        QkeditError: Java or pycocoevalcap is missing, or the number of captions in the output differs.
    """
    # One line per caption, whatever ends a line for Java or Python: one more would shift all later captions.
    lines = [" ".join(caption.splitlines()) for caption in captions]
    if not lines:
        return []
    arguments = ["-cp", str(program(_JAR)), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    found = run_java(arguments, "\n".join(lines), "the official tokens").split("\n")
    if len(found) != len(lines):
        raise QkeditError(
            f"the tokenizer made {len(found)} lines of {len(lines)} captions, so they cannot be matched",
            where=WHERE,
            remedy="leave out the captions with unusual characters, or use --variant words",
        )
    return [" ".join(token for token in line.rstrip().split(" ") if token not in _PUNCTUATION) for line in found]
