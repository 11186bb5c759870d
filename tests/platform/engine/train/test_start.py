"""From which checkpoints a pre-training run may begin, and what it says of the others. The newest may be torn."""

import pytest
import torch
import torch.distributed as dist

from platform.engine.errors import UserError
from platform.engine.storage.location import open_storage
from platform.engine.stream.order import StreamPlan
from platform.engine.stream.units import read_units
from platform.engine.train.checkpoints import STATE, CheckpointConfig, CheckpointStore
from platform.engine.train.resume import find_resume_point
from platform.engine.train.start import check_start

TOTAL, BATCH = 160, 16
STATES = {"student": {"weight": torch.ones(2)}, "objective": {}}


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def plan(tiny_shards) -> StreamPlan:
    return StreamPlan(tuple(read_units(tiny_shards)), 0, 4, 2)


@pytest.fixture
def other(tmp_path, plan):
    """A run with checkpoints after 80 and 160 samples."""
    store = CheckpointStore(open_storage(str(tmp_path / "other" / "checkpoints")), keep=9)
    for position in (80, 160):
        store.save(position, STATES, {"data": plan.checksum})
    return store


def start(tmp_path, plan, total=TOTAL, **config) -> None:
    check_start(open_storage(str(tmp_path / "new")), CheckpointConfig(**config), plan, total, BATCH)


def test_a_checkpoint_at_the_end_of_the_run_is_refused_before_it_starts(tmp_path, plan, other):
    folder = str(tmp_path / "other")
    with pytest.raises(UserError, match=r"other/checkpoints has seen 160 samples, and this run ends at 160\. Raise length\."):
        start(tmp_path, plan, resume_from=folder)
    start(tmp_path, plan, resume_from=folder, resume_position=159)
    start(tmp_path, plan, TOTAL + BATCH, resume_from=folder)
    with pytest.raises(UserError, match=r"no checkpoint under .*other/checkpoints at or before 79 samples"):
        start(tmp_path, plan, resume_from=folder, resume_position=79)
    CheckpointStore(open_storage(str(tmp_path / "new" / "checkpoints"))).save(16, STATES, {"data": plan.checksum})
    start(tmp_path, plan, resume_from=folder)  # the run has begun: it goes on from its own


def test_the_checkpoint_that_is_read_is_checked(tmp_path, plan, other, alone, capsys):
    """The workers pass over a torn one, and what they find may be at the end as well."""
    store, config = CheckpointStore(open_storage(str(tmp_path / "new"))), CheckpointConfig(resume_from=str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"has seen 160 samples, and this run ends at 160"):
        find_resume_point(store, plan, TOTAL, config, BATCH)
    (other.root / f"position-{160:012d}" / STATE).write_bytes(b"torn")
    assert find_resume_point(store, plan, TOTAL, config, BATCH).position == 80
    assert "position-000000000160 is torn" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"has seen 80 samples, and this run ends at 80"):
        find_resume_point(store, plan, 80, config, BATCH)
    assert find_resume_point(other, plan, 80, config, BATCH).position == 80  # its own: only its results are missing


def test_checkpoints_of_other_images_and_of_fine_tuning(tmp_path, plan, other, alone):
    """The message names the folder that holds the checkpoint."""
    tuned = CheckpointStore(open_storage(str(tmp_path / "tuned" / "checkpoints")))
    tuned.save(10**9, STATES, {})  # as platform.finetune writes them
    changed = StreamPlan(plan.units[1:], 0, 4, 2)
    store = CheckpointStore(open_storage(str(tmp_path / "new" / "checkpoints")))
    for given, message in (
        ((plan, CheckpointConfig(resume_from=str(tmp_path / "tuned"))), r"no pre-training checkpoint: that under .*/tuned/ch"),
        ((changed, CheckpointConfig(resume_from=str(tmp_path / "other"))), r"not those that .*/other/checkp.*: give data\.uri"),
    ):
        with pytest.raises(UserError, match=message):
            check_start(open_storage(str(tmp_path / "new")), given[1], given[0], TOTAL, BATCH)
        with pytest.raises(UserError, match=message):
            find_resume_point(store, given[0], TOTAL, given[1], BATCH)
    with pytest.raises(UserError, match=r"not those that .*/other/checkpoints.*: bring them back, or choose another output"):
        find_resume_point(other, changed, TOTAL, CheckpointConfig(), BATCH)
