"""All code that depends on DeepSpeed."""
