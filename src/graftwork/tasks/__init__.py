"""Tasks: rows to tensors, logits to answers, answers to scores."""
