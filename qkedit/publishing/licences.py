"""Check, by the base's model card, whether its licence permits publishing an edit of it.

A card names licences by the hub's identifiers (https://huggingface.co/docs/hub/repositories-licenses). This check
prevents oversights; the conditions of a licence are for the publisher to read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from qkedit.checkpoint.card_fields import texts
from qkedit.errors import UsageError

# Identifiers of licences that permit the distribution of derivatives, some of them under conditions.
_PERMITTING = """
afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m bsd
bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0
cc-by-nc-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 creativeml-openrail-m
ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gemma gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 llama2 llama3
llama3.1 llama3.2 llama3.3 llama4 mit mpl-2.0 ms-pl ncsa openrail openrail++ osl-3.0 postgresql unlicense wtfpl zlib
"""
PERMITTING = frozenset(_PERMITTING.split())
# The part of an identifier by which Creative Commons marks "no derivatives".
_NO_DERIVATIVES = "nd"
_UNKNOWN = frozenset({"unknown", "none", ""})
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
# Files that hold a licence's text, or notices that the licence requires with every copy.
TEXT_PATTERNS = ("licen[sc]e*", "copying*", "notice*", "*use_policy*", "*use-policy*")


@dataclass(frozen=True)
class Licence:
    """The licence in a model card; `identifiers` is empty if the card does not give a usable one."""

    identifiers: tuple[str, ...] = ()
    name: str | None = None  # the name of a licence with the identifier "other"
    link: str | None = None

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Licence:
        """Read the licence from the fields of a card."""
        identifiers = tuple(text.strip().lower() for text in texts(fields.get("license")))
        name, link = (next(iter(texts(fields.get(key))), None) for key in ("license_name", "license_link"))
        return cls(tuple(text for text in identifiers if text not in _UNKNOWN), name, link)

    def __str__(self) -> str:
        """Return the licence for use in a sentence: `other (tongyi-qianwen)`."""
        listed = ", ".join(self.identifiers)
        return f"{listed} ({self.name})" if self.name else listed

    def as_fields(self) -> dict[str, Any]:
        """Return the licence as fields of a card; None marks fields that must be absent."""
        one = self.identifiers[0] if len(self.identifiers) == 1 else list(self.identifiers)
        return {"license": one, "license_name": self.name, "license_link": self.link}


def stated(identifier: str, of_base: Licence) -> Licence:
    """Return the licence that the user stated. Raises UsageError unless it is an identifier in the hub's form."""
    if not _IDENTIFIER.fullmatch(identifier):
        raise UsageError(
            f"{identifier!a} is not the identifier of a licence",
            where="--license",
            remedy="give one in the hub's form, such as apache-2.0, or other",
        )
    return of_base if identifier in of_base.identifiers else Licence((identifier,))


def refuse_licence(base: str, licence: Licence, text_files: Iterable[str]) -> None:
    """Refuse to publish an edit under its base's licence unless the licence is known to permit it.

    Args:
        base: the base's name, for the message.
        licence: the licence in the base's card.
        text_files: the base's files that hold the licence's text.

    Raises:
        UsageError: there is no licence, it forbids derivatives, or qkedit does not know what it permits.
    """
    named = "--license ID names the licence under which you may publish"
    found = sorted(text_files)
    read = f"read {found[0]} of the base" if found else "ask its publisher"
    if not licence.identifiers:
        raise UsageError("the base's card does not name a licence", where=base, remedy=f"{read}; {named}")
    for identifier in licence.identifiers:
        if _NO_DERIVATIVES in identifier.split("-"):
            raise UsageError(
                f"the base's licence, {identifier}, forbids derivatives, and an edit is one",
                where=base,
                remedy=f"do not publish it, or ask the base's publisher; if they agree, {named}",
            )
    for identifier in licence.identifiers:
        if identifier not in PERMITTING:
            link = f" ({licence.link})" if licence.link else ""
            confirmed = identifier if _IDENTIFIER.fullmatch(identifier) else "other"
            raise UsageError(
                f"the base's licence is {licence}{link}, and qkedit does not know whether it permits derivatives",
                where=base,
                remedy=f"read it; if it does, confirm with --license {confirmed}",
            )


def is_licence_text(file: str) -> bool:
    """Return whether a file at the top of a repository is its licence, or a notice that must accompany it."""
    return "/" not in file and any(fnmatchcase(file.lower(), pattern) for pattern in TEXT_PATTERNS)
