"""Allowed values of settings, importable without torch, so that configurations are checked before heavy imports."""

import math

OPTIMIZERS = ("adamw", "sgd", "lars")
LARGEST_MARGIN = {"arcface": math.pi, "cosface": 2.0, "circle": 1.0}
"""Margin loss -> upper bound of its margin (exclusive)."""
MEASURES = ("cosine", "neighborhood", "group_neighborhood", "group_cka")
"""Measures of the Catastrophic Forgetting Score (reidssl/selection/cfs.py)."""
PRECISIONS = ("auto", "fp32", "bf16")
COMPILE_CHOICES = ("auto", "on", "off")
RESIZES = ("bicubic", "bilinear")
"""Ways to scale images, both with antialiasing."""
NECKS = ("before", "after")
"""Sides of the batch-norm neck of a re-ID model."""
GALLERY_BLOCK = 131072
"""Default number of gallery images compared at a time."""
RETRIEVAL_METRICS = ("mAP", "rank1", "rank5", "rank10", "mINP")
