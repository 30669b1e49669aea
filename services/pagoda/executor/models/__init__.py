"""One generic decoder; a model family is a description of it."""
