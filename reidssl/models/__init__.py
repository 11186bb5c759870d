"""Models: the backbone, its stem and heads, the re-ID model, and their files."""
