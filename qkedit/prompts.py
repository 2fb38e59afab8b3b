"""Words that are asked in more than one place; nothing is imported here, so that a command line may."""

from __future__ import annotations

CAPTION_PROMPT = "Please describe this image in detail."
"""The prompt of the CHAIR protocol (arXiv 1809.02156 as later papers run it), which the demo model was taught."""
