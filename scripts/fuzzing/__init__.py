"""Feed broken inputs to every reader: one target per file format and per field of a request."""
