"""What settings choose from, importable without torch: configurations are checked before anything heavy is loaded."""

import math

OPTIMIZERS = ("adamw", "sgd", "lars")
LARGEST_MARGIN = {"arcface": math.pi, "cosface": 2.0, "circle": 1.0}
"""The margin losses, and what each margin must stay below."""
MEASURES = ("cosine", "neighborhood")
"""Of the Catastrophic Forgetting Score (reidssl/selection/cfs.py)."""
PRECISIONS = ("auto", "fp32", "bf16")
COMPILE_CHOICES = ("auto", "on", "off")
NECKS = ("before", "after")
"""Sides of the batch-norm neck of a re-ID model."""
GALLERY_BLOCK = 131072
"""Gallery images compared at a time."""
