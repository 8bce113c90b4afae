"""Language models and their adapters, LoRA and prompts: loading them, and texts as tokens."""
