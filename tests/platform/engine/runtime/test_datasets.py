"""Ray Data's scheduler does not run without a pause while a slow consumer holds it up."""

import time

from platform.engine.runtime.datasets import STEP_S, PacedSteps, prepare
from platform.engine.runtime.ray_internals import REMARK, without_remark
from platform.engine.runtime.run_name import run_name


class Counting(PacedSteps):
    steps = 0

    def on_execution_step(self, executor):
        Counting.steps += 1


def test_the_scheduler_waits_between_its_steps(ray_session):
    dataset = prepare(ray_session.data.range(8, override_num_blocks=8).map_batches(lambda batch: batch, batch_size=1))
    paced = dataset.context.custom_execution_callback_classes
    assert paced == [PacedSteps] and (dataset.name or "") == run_name()
    dataset.context.custom_execution_callback_classes = [*paced, Counting]
    began, seen = time.monotonic(), []
    for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
        seen += batch["id"].tolist()
        time.sleep(0.25)
    took = time.monotonic() - began
    assert sorted(seen) == list(range(8))
    assert 0 < Counting.steps <= took / STEP_S + 2


def test_ray_s_remark_about_processes_is_not_shown(monkeypatch):
    import ray._private.worker as worker

    shown = []
    monkeypatch.setattr(worker, "print_to_stdstream", lambda data, ignore_prefix: shown.append(data["lines"][0]))
    without_remark()
    without_remark()
    for line in (f"WARNING: 8 PYTHON {REMARK}: abc", "2 workers were killed due to a lack of memory"):
        worker.print_to_stdstream({"lines": [line], "pid": "raylet"}, ignore_prefix=False)
    assert shown == ["2 workers were killed due to a lack of memory"]
