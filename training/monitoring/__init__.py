"""What a run shows of itself beside metrics.jsonl: TensorBoard's dashboard, Weights & Biases, and what they draw."""
