"""Detection of collapse in the logged terms of an objective, with advice on what to change.

Self-distillation can end with targets that carry no information about the image: all prototypes equal (too little sharpening),
always the same prototype (too little centering), or the same feature for all images. The loss decreases in each case, so it does
not reveal the collapse.

    monitor = CollapseMonitor("dino", choices=65536, width=384)
    for warning in monitor(terms): print(warning)
"""

import math
from collections.abc import Mapping

INDIFFERENT = 0.99
"""Fraction of the maximum entropy above which targets over prototypes count as uniform."""
INDISTINCT = 0.005
"""Distance in nats from the maximum entropy below which a contrast of keys counts as uniform. A healthy queue is 0.05 away."""
UNINFORMATIVE = 0.01
"""Information of targets about the image, in nats, below which all targets count as equal."""
ALIKE = 0.02
"""Standard deviation of unit features, relative to that of evenly spread ones (1 / sqrt(D)), below which they count as equal."""
CENTER_ALONE = 0.9995
"""Ratio of the norms of center and logits above which the logits hardly depend on the image. A new model has 0.99."""


def signs(terms: Mapping[str, float], name: str, choices: int, width: int) -> dict[str, str]:
    """The signs of collapse in one row of logged terms: {short name: sentence}, empty if there is none.

    Args:
        terms: terms of an objective's output, averaged or not. "teacher_entropy", "target_information", "feature_std",
            "center_norm" and "logit_norm" are examined if present.
        name: name of the objective, as in `ObjectiveConfig.name`.
        choices: number of classes of the teacher's softmax.
        width: D of the backbone.
    """
    found: dict[str, str] = {}
    prototypes, key = name.startswith("dino"), f"objective.{name}"
    entropy, largest = terms.get("teacher_entropy"), math.log(max(choices, 2))
    if entropy is not None and entropy > (INDIFFERENT * largest if prototypes else largest - INDISTINCT):
        seen = f"the teacher is indifferent: its entropy is {entropy:.3f} of at most ln {choices:,} = {largest:.3f} nats"
        if prototypes:
            found["indifferent"] = (
                f"{seen}. Lower {key}.teacher_temperature (and warmup_teacher_temperature), lower "
                f"{key}.teacher_momentum so that the teacher follows sooner, or take fewer prototypes "
                f"({key}.out_dim)"
            )
        else:
            found["indifferent"] = (
                f"{seen}: images look alike to the momentum encoder. Lower {key}.temperature or "
                "optimizer.learning_rate, or lengthen optimizer.warmup_epochs"
            )
    information = terms.get("target_information")
    if information is not None and information < UNINFORMATIVE and "indifferent" not in found:
        found["one_prototype"] = (
            f"the targets hardly depend on the image ({information:.2g} nats of information): the same "
            f"prototypes are chosen for all. Set {key}.centering=sinkhorn_knopp, lower "
            f"{key}.center_momentum, raise {key}.teacher_temperature, or lower optimizer.learning_rate"
        )
    spread = terms.get("feature_std")
    if spread is not None and spread < ALIKE / math.sqrt(width):
        advice = f"set {key}.koleo_weight=0.1, or lower" if prototypes else "lower"
        found["features"] = (
            f"all images have nearly the same feature: the standard deviation is {spread:.2g}, evenly spread "
            f"features have {1 / math.sqrt(width):.2g}. To mend it {advice} optimizer.learning_rate or "
            "lengthen optimizer.warmup_epochs"
        )
    center, logits = terms.get("center_norm"), terms.get("logit_norm")
    if center is not None and logits is not None and center > CENTER_ALONE * logits:
        found["center"] = (
            f"the center has grown to {center / logits:.2%} of the logits' norm ({center:.3g} of {logits:.3g}): "
            f"images make almost no difference to the teacher. Lower optimizer.learning_rate, or raise "
            f"{key}.freeze_last_layer_epochs"
        )
    return found


class CollapseMonitor:
    """Warns when a sign of collapse persists for `patience` consecutive rows, and again only after it has disappeared.

    Args:
        name, choices, width: as in `signs`.
        patience: number of consecutive rows, at least 1, since the first rows of a run may look collapsed.
    """

    def __init__(self, name: str, choices: int, width: int, patience: int = 3) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1: got {patience}")
        self.name, self.choices, self.width, self.patience = name, choices, width, patience
        self._seen: dict[str, int] = {}

    def __call__(self, terms: Mapping[str, float]) -> list[str]:
        """The warnings for signs that have been present for exactly `patience` rows with this one."""
        found = signs(terms, self.name, self.choices, self.width)
        self._seen = {sign: self._seen.get(sign, 0) + 1 for sign in found}
        return [text for sign, text in found.items() if self._seen[sign] == self.patience]
