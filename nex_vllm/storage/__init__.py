"""The two file formats: activation cache and weights."""
