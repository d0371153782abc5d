"""The paper's method on recorded rows: novelty, segmentation, credit, weights, scores, baselines."""
