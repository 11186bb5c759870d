"""The charts of the report, with the metrics and runs that each of them shows."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from platform.engine.data.shards import read_rows
from platform.engine.errors import StorageError
from platform.engine.report.contents import RunFolder, RunMember
from platform.engine.report.plots.bars import grouped_bars, histogram
from platform.engine.report.plots.curves import Series, line_chart
from platform.engine.report.results import result_rows, setting_title
from platform.engine.runs.gauges import OPERATION
from platform.engine.schemas.finetune_settings import SETTINGS

STYLES = {"random": 0, "full": 1, "selected": 2, "proxy": 3, "random_part": 4, "inverse_part": 5}
PRETRAIN_METRICS = [
    ("loss", "Loss"),
    ("probe_mAP", "Probe: cross-camera mAP"),
    ("probe_same_camera", "Probe: nearest neighbor, same camera"),
    ("dino", "Loss of the class tokens"),
    ("patch", "Loss of the masked patches"),
    ("teacher_entropy", "Teacher entropy (nats)"),
    ("patch_entropy", "Teacher entropy on masked patches (nats)"),
    ("target_information", "What targets tell about their image (nats)"),
    ("feature_std", "Feature standard deviation"),
    ("accuracy", "Contrast: own other view is the nearest"),
    ("koleo", "KoLeo: mean -log distance to the nearest"),
    ("center_norm", "Norm of the center"),
    ("logit_norm", "Norm of the teacher's logits"),
    ("images_per_second", "Images per second"),
    ("input_wait_seconds", "Wait for input (seconds of a step)"),
    ("learning_rate", "Learning rate"),
    ("teacher_momentum", "Teacher momentum"),
    ("weight_decay", "Weight decay"),
]
NO_METRICS = {"position", "time", *OPERATION}
ENTROPIES = ("teacher_entropy", "patch_entropy")
CLUSTER_METRICS = [
    ("clusters", "Clusters"),
    ("outliers", "Images in no cluster"),
    ("adjusted_rand_index", "Agreement with the true identities (adjusted Rand index)"),
    ("purity", "Purity: images with the main identity of their cluster"),
    ("label_stability", "Agreement with the labels of the epoch before"),
]
FINETUNE_METRICS = [
    ("loss", "Loss"),
    ("accuracy", "Training accuracy"),
    ("mAP", "mAP on the test set"),
    ("images_per_second", "Images per second"),
]
FROM_ZERO = {
    "adjusted_rand_index",
    "purity",
    "label_stability",
    "images_per_second",
    "outliers",
    "clusters",
    "probe_mAP",
    "accuracy",
    "mAP",
}


def style_of(name: str, others: Sequence[str]) -> int:
    """Style index of a run name, equal in every chart: fixed for usual names, else by the order of the unusual names."""
    unusual = sorted(set(others) - STYLES.keys())
    return STYLES[name] if name in STYLES else 1 + (unusual.index(name) + (3 if STYLES.keys() & set(others) else 0)) % 5


def pretrain_charts(folder: RunFolder) -> list[Markup]:
    """One chart for each metric, with all pre-training runs in it."""
    runs = [one for one in folder.of("pretrain") if one.metrics]
    names = [one.short_name for one in runs]
    runs.sort(key=lambda one: (style_of(one.short_name, names), one.name))
    logged = dict.fromkeys(name for one in runs for row in one.metrics for name in row if name not in NO_METRICS)
    others = [(name, name.replace("_", " ").capitalize()) for name in logged if name not in dict(PRETRAIN_METRICS)]
    charts = []
    for metric, title in PRETRAIN_METRICS + others:
        series = [_series(one.short_name, one.metrics, "position", metric, style_of(one.short_name, names)) for one in runs]
        reference = None
        if metric in ENTROPIES:
            counts = {entropy_choices(one, metric) for one in runs if any(metric in row for row in one.metrics)}
            choices = counts.pop() if len(counts) == 1 else 0  # a reference line needs one common value
            reference = (f"indifferent: ln {choices:,}", math.log(choices)) if choices > 1 else None
        charts += _chart(series, title, "images seen", metric, reference)
    return charts


def entropy_choices(run: RunMember, metric: str = "teacher_entropy") -> int:
    """Number of classes of the teacher's softmax; 0 if unknown.

    DINO, with and without masks: the prototypes. MoCo v3: the images of a micro-batch. MoBY: the positive key and the queue.
    """
    name = str(run.setting_of("objective", "name"))
    keys = {
        "dino": ("objective", "dino", "out_dim"),
        "moco_v3": ("stream", "micro_batch"),
        "moby": ("objective", "moby", "queue_size"),
        "dino_mim": ("objective", "dino_mim", "out_dim"),
    }
    if metric == "patch_entropy" and run.setting_of("objective", "dino_mim", "shared_head") is False:
        keys["dino_mim"] = ("objective", "dino_mim", "patch_out_dim")
    value = run.setting_of(*keys.get(name, ("",)))
    return value + (name == "moby") if isinstance(value, int) else 0


def cluster_charts(folder: RunFolder) -> list[tuple[str, list[Markup]]]:
    """(setting, charts) of the unsupervised settings. Each chart shows all initializations."""
    return _by_setting(folder, CLUSTER_METRICS, lambda row: "clusters" in row)


def finetune_charts(folder: RunFolder) -> list[tuple[str, list[Markup]]]:
    """(setting and phase, charts) of all fine-tuning runs. The two phases of UDA are separate: their losses differ in kind."""
    found = []
    for setting in SETTINGS:
        phases: list[tuple[str, Callable[[dict[str, Any]], bool]]] = [("", lambda row: True)]
        if setting == "uda":
            phases = [
                (", labeled source", lambda row: "clusters" not in row),
                (", unlabeled target", lambda row: "clusters" in row),
            ]
        for suffix, chosen in phases:
            found += [(name + suffix, charts) for name, charts in _by_setting(folder, FINETUNE_METRICS, chosen, [setting])]
    return found


def _by_setting(
    folder: RunFolder,
    metrics: list[tuple[str, str]],
    chosen: Callable[[dict[str, Any]], bool],
    settings: Sequence[str] = SETTINGS,
) -> list[tuple[str, list[Markup]]]:
    found = []
    for setting in settings:
        runs = [one for one in folder.of("finetune") if one.setting == setting]
        names = [_label(one) for one in runs]
        runs.sort(key=lambda one: (style_of(_label(one), names), one.name))
        charts: list[Markup] = []
        for metric, title in metrics:
            series = [
                _series(_label(one), [row for row in one.metrics if chosen(row)], "epoch", metric, style_of(_label(one), names))
                for one in runs
            ]
            reference = None
            if metric == "clusters" and (people := _training_people(folder)):
                reference = (f"people in the training set: {people:,}", float(people))
            charts += _chart(series, title, "epoch", metric, reference)
        if charts:
            found.append((setting_title(setting), charts))
    return found


def _label(member: RunMember) -> str:
    return "proxy" if member.name == "proxy/target" else member.init


def _training_people(folder: RunFolder) -> int:
    data = folder.data.get("target")
    if data is None or "train" not in data.manifest.splits:
        return 0
    try:
        pids = read_rows(data.location, ["pid"], split="train")["pid"].to_numpy()
    except StorageError:
        return 0  # the table of the data sets reports the error
    return len(np.unique(pids[pids >= 0]))


def _series(name: str, rows: list[dict[str, Any]], x: str, y: str, style: int) -> Series:
    kept = [row for row in rows if y in row and x in row]
    return Series(name, [row[x] for row in kept], [row[y] for row in kept], style)


def _chart(series: list[Series], title: str, x_label: str, metric: str, reference: tuple[str, float] | None) -> list[Markup]:
    drawn = [one for one in series if any(math.isfinite(value) for value in one.y)]
    if not drawn:
        return []
    low = 0.0 if metric in FROM_ZERO else None
    return [Markup(line_chart(drawn, title=title, x_label=x_label, reference=reference, x_low=0.0, y_low=low))]


def result_bars(folder: RunFolder) -> Markup:
    """Bars with the mAP of every setting and initialization. There must be at least one result."""
    rows = result_rows(folder)
    inits = [row.init for row in rows]
    groups = []
    for setting in dict.fromkeys(row.setting for row in rows):
        members = [(row.init, row.values["mAP"], style_of(row.init, inits)) for row in rows if row.setting == setting]
        groups.append((setting_title(setting), members))
    bars = sum(len(members) for _, members in groups)
    size = (min(880.0, max(320.0, 90 + 84.0 * bars + 40 * len(groups))), 290.0)
    return Markup(grouped_bars(groups, title="mAP in per cent, by setting and start", size=size))


def score_histogram(scores: np.ndarray, planted: np.ndarray | None, selection: dict[str, Any] | None, measure: str) -> Markup:
    """Histogram of the scores, with the threshold of the selection. Planted images are a separate group if they are known.

    scores: float (N,), finite; planted: bool (N,) or None; measure: name of the score.
    """
    groups = {"images": scores} if planted is None else {"people": scores[~planted], "planted useless images": scores[planted]}
    threshold, label = None, ""
    if selection:
        threshold = float(selection["threshold"])
        label = f"kept from {threshold:.3f}: {selection['selected']:,} images ({selection['fraction']:.0%})"
    return Markup(
        histogram(
            groups,
            title="Catastrophic Forgetting Score of the pre-training images",
            x_label=f"score ({measure}); high = close to the target domain",
            threshold=threshold,
            threshold_label=label,
        )
    )


def agreement_curve(selection: dict[str, Any] | None) -> Markup | None:
    """Overlap of the top fractions with the selection's reference ranking; None if it was compared with none."""
    overlaps = ((selection or {}).get("agreement") or {}).get("overlaps")
    if not overlaps:
        return None
    x = sorted(float(fraction) for fraction in overlaps)
    shared = Series("shared with the reference", x, [overlaps[f"{fraction:g}"] for fraction in x])
    return Markup(
        line_chart(
            [shared, Series("by chance", x, x, 0)],
            title="Overlap with the reference ranking",
            x_label="top fraction of both rankings",
            x_low=0.0,
            y_low=0.0,
        )
    )
