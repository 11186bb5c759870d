"""Signs of collapse in what an objective logs: what was seen, and what to change.

Self-distillation can end in targets that say nothing about the image: all prototypes alike (too little sharpening), always
the same one (too little centring), or one feature for all images. The loss falls in each case, so it does not show.

    monitor = CollapseMonitor("dino", choices=65536, width=384)
    for warning in monitor(terms): print(warning)
"""

import math
from collections.abc import Mapping

INDIFFERENT = 0.99
"""Share of the largest entropy above which targets over prototypes count as indifferent."""
INDISTINCT = 0.005
"""Nats below the largest entropy within which a contrast of keys counts as indifferent; healthy queues come to 0.05."""
UNINFORMATIVE = 0.01
"""Nats that targets tell about the image, below which they count as all alike."""
ALIKE = 0.02
"""Standard deviation of unit features, in units of that of evenly spread ones (1 / sqrt(D)), below which they count as alike."""
CENTER_ALONE = 0.9995
"""Share of the logits' norm that the center has when images make almost no difference to them; a fresh model has 0.99."""


def signs(terms: Mapping[str, float], name: str, choices: int, width: int) -> dict[str, str]:
    """The signs of collapse in one row of logged terms: {short name: sentence}, empty if there is none.

    Args:
        terms: of an objective's output, averaged or not; "teacher_entropy", "target_information", "feature_std",
            "center_norm" and "logit_norm" are looked at, where they are.
        name: of the objective, as in `ObjectiveConfig.name`; for the advice.
        choices: among how many the teacher's softmax chooses.
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
    """Warns when a sign has been there for some rows on end, once until it has gone away.

    Args:
        name, choices, width: as for `signs`.
        patience: rows on end, at least 1; the first rows of a run may look collapsed.
    """

    def __init__(self, name: str, choices: int, width: int, patience: int = 3) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1: got {patience}")
        self.name, self.choices, self.width, self.patience = name, choices, width, patience
        self._seen: dict[str, int] = {}

    def __call__(self, terms: Mapping[str, float]) -> list[str]:
        """The warnings that this row brings to an end of patience."""
        found = signs(terms, self.name, self.choices, self.width)
        self._seen = {sign: self._seen.get(sign, 0) + 1 for sign in found}
        return [text for sign, text in found.items() if self._seen[sign] == self.patience]
