"""Does choosing help? Problems, grading, selectors on the same candidates, and what can be concluded from them."""
