"""The base model: loading, partition into modules, LoRA injection."""
