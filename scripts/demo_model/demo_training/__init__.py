"""Train the miniature model of `--model demo`: its files, its data, its two stages, and its record."""
