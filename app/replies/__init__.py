"""A reply from the first word to its final status, and everybody who reads it."""
