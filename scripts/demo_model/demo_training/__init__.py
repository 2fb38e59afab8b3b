"""Train a miniature model, `demo` or `demo-small`: its files, its data, its two stages, and its record."""
