"""What a choice is worth: diagnostics, resampling and comparisons of what was recorded before; no engine is needed."""
