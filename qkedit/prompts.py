"""Prompts used in more than one place; without imports, so that the command line can import it quickly."""

from __future__ import annotations

CAPTION_PROMPT = "Please describe this image in detail."
"""The prompt of the CHAIR protocol (arXiv 1809.02156, as run by later papers), on which the demo model was trained."""
