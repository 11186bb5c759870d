"""How well features find people: ranking metrics, with or without re-ranking."""
