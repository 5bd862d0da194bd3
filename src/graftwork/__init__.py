"""graftwork: adapter layers for any frozen Hugging Face transformer."""
