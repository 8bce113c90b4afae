"""Training a small base model from scratch: corpus, tokenizer, model, loop."""
