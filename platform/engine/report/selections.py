"""The texts and rows of the report about scores and selections: measure, proxies, and the images that were kept."""

from collections.abc import Sequence
from typing import Any

from platform.engine.report.contents import RunFolder, RunMember
from platform.engine.storage.location import open_storage

MEASURES = {
    "cosine": ("cosine of the two proxies' features", "whose feature hardly changes in that tuning"),
    "neighborhood": (
        "share of the {k} nearest images that the two proxies agree on",
        "whose nearest images stay the same in that tuning",
    ),
    "group_neighborhood": (
        "share of the {k} nearest images, in random groups of up to {group}, that the two proxies agree on",
        "whose nearest images stay the same in that tuning",
    ),
    "group_cka": (
        "part of the image in the linear CKA of the two proxies, in random groups of up to {group}",
        "whose similarities to other images stay the same in that tuning",
    ),
}


def measure_name(scores: RunMember) -> str:
    """The measure of the scores in words."""
    about = scores.summary or {}
    measure = str(about.get("measure") or scores.setting_of("measure") or "unknown measure")
    used = {name: about.get(name) or scores.setting_of(name) or name for name in ("k", "group")}
    return MEASURES[measure][0].format(**used) if measure in MEASURES else measure


def kept_images(scores: RunMember) -> str:
    """The property of images with a high score, as the end of "an image ..."."""
    measure = str((scores.summary or {}).get("measure") or scores.setting_of("measure"))
    return MEASURES[measure][1] if measure in MEASURES else "with a high score"


def selection_by(folder: RunFolder, scores: RunMember) -> dict[str, Any] | None:
    """The summary of a finished selection that was made from these scores, whose threshold applies to them; None if none was."""
    made = [one for one in folder.of("select") if one.summary and one.config.get("scores") and not one.config.get("inverse")]
    alone = len(folder.of("score")) == 1
    return next((one.summary for one in made if alone or _same_place(str(one.config["scores"]), scores)), None)


def _same_place(uri: str, member: RunMember) -> bool:
    return open_storage(uri, member.location.config).uri == member.location.uri


def selection_rows(folder: RunFolder) -> list[dict[str, Any]]:
    """{"run", "by", "selected", "total", "threshold", "planted"} of every finished selection."""
    rows = []
    for one in folder.of("select"):
        if one.summary and "selected" in one.summary:  # not a comparison
            planted = one.summary.get("planted_share") or {}
            by_score = bool(one.config.get("scores"))
            rows.append(
                {
                    "run": one.name,
                    "by": _by(one, folder.of("score")),
                    "selected": one.summary["selected"],
                    "total": one.summary["total"],
                    "threshold": one.summary["threshold"] if by_score else None,
                    "planted": planted.get("selected"),
                }
            )
    return rows


def _by(selection: RunMember, scores: Sequence[RunMember]) -> str:
    about = (selection.summary or {}).get("by") or {}
    if selection.config.get("random"):
        return f"chance (seed {selection.config.get('seed', 0)}), the control"
    if selection.config.get("list"):
        count = f", {about['entries']:,} entries" if "entries" in about else ""
        return f"the list {str(selection.config['list']).rpartition('/')[2]}{count}"
    own = next((one for one in scores if len(scores) == 1 or _same_place(str(selection.config.get("scores")), one)), None)
    named = about.get("measure") or (own.summary or {}).get("measure") if own else about.get("measure")
    return f"score ({named or 'unknown measure'}{', worst first' * bool(selection.config.get('inverse'))})"


def target_proxy_text(folder: RunFolder, scores: RunMember) -> str:
    """A sentence on whether the target proxy, and so the selection, used identity labels; "" if it is not known."""
    recorded = ((scores.summary or {}).get("proxies") or {}).get("target") or {}
    proxy = folder.named("proxy/target")
    setting = recorded.get("setting") or (proxy.setting if proxy else "")
    return {
        "usl": "The target proxy was tuned without labels (USL), so the selection is label-free.",
        "supervised": "The target proxy was tuned with the target's identity labels, so the selection is not label-free.",
        "uda": "The target proxy was tuned with labels of a source set (UDA), so the selection needs none of the target's.",
    }.get(str(setting), "")


def proxy_rows(scores: RunMember) -> list[dict[str, str]]:
    """{"role", "uri", "weights"} of the source and target proxy, if they were recorded."""
    summary = scores.summary or {}
    proxies = summary.get("proxies") or {}
    return [
        {"role": name, "uri": str(summary.get(name, "")), "weights": str(proxies[name].get("weights", ""))}
        for name in ("source", "target")
        if name in proxies
    ]
