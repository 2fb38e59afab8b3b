"""Feed broken inputs to everything that reads one: a target per file format and per field of a request."""
