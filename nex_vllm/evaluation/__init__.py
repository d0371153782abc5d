"""What a choice is worth: problems, grading, comparisons of selectors, resampling, diagnostics; it needs no engine."""
