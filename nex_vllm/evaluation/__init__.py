"""What a choice is worth: problems and grading, comparisons of selectors, resampling, diagnostics; no engine is needed."""
