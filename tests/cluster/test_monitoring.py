"""Monitoring files: every metric that they name exists."""

import json
import re
from pathlib import Path

import numpy as np
import torch
import yaml

from platform.engine.runs.gauges import OPERATION
from reidssl.augment.multicrop import MultiCrop, MultiCropConfig
from reidssl.models.model_config import VitConfig
from reidssl.objectives import ObjectiveConfig, build_objective
from reidssl.objectives.base import Progress

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "monitoring"


def expressions() -> list[str]:
    alerts = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    return [rule["expr"] for group in alerts["groups"] for rule in group["rules"]] + [
        target["expr"] for panel in dashboard["panels"] for target in panel["targets"]
    ]


def logged_by_a_run() -> set[str]:
    """Names of the metrics that a pre-training run logs: the terms of the objective, of the loop and of the probe."""
    size = (32, 16)
    crops = MultiCrop(MultiCropConfig(global_size=size, local_size=(16, 8), num_local=0))(
        torch.zeros(4, 3, *size, dtype=torch.uint8), np.arange(4, dtype=np.uint64)
    )
    objective = build_objective(
        VitConfig(width=16, depth=1, heads=2, patch_size=8, image_size=size, stem_width=4), ObjectiveConfig(name="dino")
    )
    terms = objective(objective.student, crops, Progress(0, 8, 16)).terms
    shown = {"failed", "not_finite"}  # when a run stops with an error (platform/engine/train/worker.py)
    return {*terms, *OPERATION, *shown, "images_per_second", "learning_rate", "probe_map"}


def test_every_metric_of_ours_is_logged():
    named = set(re.findall(r"\bray_reidssl_(\w+)", " ".join(expressions())))
    assert named and named <= logged_by_a_run()


def test_every_metric_of_a_node_is_exported_by_ray():
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    named = set(re.findall(r"\bray_(node_\w+)", " ".join(expressions())))
    assert named and named <= set(METRICS_GAUGES)


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not():
    """promtool runs the cases (alerts_test.yaml); here, none is missing and the texts are those of the rules."""
    rules = {r["alert"]: r for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for r in group["rules"]}
    assert {"InputStalled", "NotFinite", "Collapse", "RestartsRepeat", "RunFailed", "RunSilent"} <= rules.keys()
    fires, rests = set(), set()
    for test in yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            rule = rules[case["alertname"]]
            (fires if case["exp_alerts"] else rests).add(case["alertname"])
            for alert in case["exp_alerts"]:
                label = next(name for name in ("run", "instance") if name in alert["exp_labels"])
                assert alert["exp_labels"] == {**rule["labels"], label: alert["exp_labels"][label]}
                written = rule["annotations"].items()
                texts = {name: re.sub(r"{{ \$labels\.\w+ }}", alert["exp_labels"][label], text) for name, text in written}
                assert alert["exp_annotations"] == texts
    assert fires == rules.keys() and rests >= rules.keys() - {"NodeDiskFilling", "ObjectStoreSpilling"}


def test_prometheus_reads_the_alerts():
    values = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    assert values["rule_files"] and all((FOLDER / name).exists() for name in values["rule_files"])
