"""Train the miniature model behind `--model demo`: its files, its data, its two stages, its record."""
