"""qkedit edits the query-key products of vision-language checkpoints on disk."""

__version__ = "0.1.0"
