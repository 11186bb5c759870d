"""The sample stream: deterministic, elastic, exactly once."""
