"""The HTTP face: request and response fields."""
