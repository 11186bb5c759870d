"""Checkpoints: published atomically, kept, skipped when incomplete; on this machine and on S3."""

import os
import threading
from pathlib import Path

import pytest
import torch

from platform.engine.errors import StorageError, UserError
from platform.engine.storage.location import PARTIAL, StorageConfig, open_storage
from platform.engine.train.checkpoints import MANIFEST, STATE, BackgroundWriter, CheckpointConfig, CheckpointStore
from tests.platform import survival


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    if request.param == "local":
        return open_storage(str(tmp_path / "checkpoints"))
    server = request.getfixturevalue("s3")
    return open_storage(f"{server.uri}/run/checkpoints", StorageConfig(endpoint_url=server.endpoint_url))


def payload(value: float) -> dict:
    return {
        "student": {"parameters": {"weight": torch.full((3, 2), value, dtype=torch.float64)}, "step": 4.0},
        "names": ["a", "b"],
        "position": 7,
    }


def positions(root) -> list[str]:
    return sorted({item.name.partition("/")[0] for item in root.list()})


def test_nothing_there(root):
    store = CheckpointStore(root)
    assert store.newest() is None


def test_round_trip_and_keep(root):
    store = CheckpointStore(root, keep=2)
    for position in (100, 200, 1000):
        told = store.save(position, payload(position / 7), {"config": {"x": 1}})
        assert told["mebibytes"] > 0 and told["seconds"] >= 0
    assert positions(root) == ["position-000000000200", "position-000000001000"]
    found = CheckpointStore(root).newest()
    assert found.position == 1000
    assert found.metadata == {"config": {"x": 1}} and found.torn == ()
    assert torch.equal(found.payload["student"]["parameters"]["weight"], payload(1000 / 7)["student"]["parameters"]["weight"])
    assert found.payload["names"] == ["a", "b"] and found.payload["student"]["step"] == 4.0


def test_a_checkpoint_with_code_is_dangerous_not_torn(tmp_path):
    """Its checksum is right, so another program has written it: an older checkpoint must not silently take its place."""

    class Harmful:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/owned",)

    store = CheckpointStore(open_storage(str(tmp_path / "checkpoints")))
    store.save(100, payload(1), {})
    store.save(200, {"student": Harmful()}, {})
    with pytest.raises(
        UserError, match=r"position-000000000200/state\.pt holds an object of \w+\.system and is refused as dangerous"
    ):
        store.newest()
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "bad manifest"])
def test_a_torn_newest_is_passed_over(root, damage):
    store = CheckpointStore(root)
    store.save(100, payload(1), {})
    store.save(200, payload(2), {})
    state = root / "position-000000000200" / STATE
    data = state.read_bytes()
    if damage == "cut":
        state.write_bytes(data[:-10])
    elif damage == "flipped":
        state.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    elif damage == "missing":
        state.delete()
    else:
        (root / "position-000000000200" / MANIFEST).write_bytes(b'{"bytes":')
    found = store.newest()
    assert found.position == 100 and found.torn == ("position-000000000200",)
    assert found.payload["student"]["parameters"]["weight"][0, 0] == 1


def test_an_upload_that_broke_off_is_passed_over_named_and_deleted_by_the_next(root):
    store = CheckpointStore(root)
    (root / "position-000000000050" / STATE).write_bytes(b"half")
    assert store.newest() is None and store.unfinished() == [50]
    store.save(100, payload(1), {})
    assert positions(root) == ["position-000000000100"]
    (root / "position-000000000200" / STATE).write_bytes(b"half")
    found = store.newest()
    assert found.position == 100 and found.torn == ("position-000000000200",)
    store.save(150, payload(2), {})
    assert positions(root) == ["position-000000000100", "position-000000000150"]


def test_the_newest_up_to_a_position(root):
    store = CheckpointStore(root, keep=3)
    for position in (100, 200, 300):
        store.save(position, payload(position), {})
    assert [store.newest(at_most).position for at_most in (0, 300, 299, 200, 100)] == [300, 300, 200, 200, 100]
    assert store.newest(99) is None


def test_all_torn_is_an_error_that_says_what_to_do(root):
    store = CheckpointStore(root)
    store.save(100, payload(1), {})
    (root / "position-000000000100" / STATE).write_bytes(b"")
    with pytest.raises(UserError, match=r"(?s)no checkpoint .* position-000000000100 .*Delete that folder to start over"):
        store.newest()


def test_a_torn_one_ahead_does_not_cost_the_new_one(root):
    store = CheckpointStore(root, keep=1)
    store.save(300, payload(3), {})
    (root / "position-000000000300" / STATE).write_bytes(b"torn")
    store.save(250, payload(2), {})  # continued from an older checkpoint, with checkpoints more often
    assert positions(root) == ["position-000000000250"]
    assert store.newest().position == 250


def test_code_in_a_checkpoint_is_not_executed(root):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    store = CheckpointStore(root)
    store.save(100, {"x": Evil()}, {})
    with pytest.raises(Exception, match=r"[Ww]eights"):
        store.newest()


def test_a_store_that_does_not_answer_is_no_torn_checkpoint(tmp_path, monkeypatch):
    store = CheckpointStore(open_storage(str(tmp_path)))
    store.save(100, payload(1), {})
    state = tmp_path / "position-000000000100" / STATE
    state.unlink()
    state.mkdir()  # exists but cannot be read
    with pytest.raises(StorageError, match="cannot read"):
        store.newest()


def test_multiples_are_kept_for_good(root):
    store = CheckpointStore(root, keep=1, keep_multiples_of=200)
    for position in range(100, 600, 100):
        store.save(position, payload(1), {})
    assert positions(root) == ["position-000000000200", "position-000000000400", "position-000000000500"]


def test_what_killed_writes_left_goes_with_the_old_positions(tmp_path):
    """In a folder of its own, and in that of a checkpoint that is kept for good. A write in progress is not disturbed."""
    root = open_storage(str(tmp_path / "checkpoints"))
    store = CheckpointStore(root, keep=1, keep_multiples_of=200)
    for position in (150, 200):
        (root / f"position-{position:012d}" / f".{STATE}.0123456789ab{PARTIAL}").write_bytes(b"x" * 99)
    store.save(200, payload(1), {})
    with (root / f"position-{350:012d}" / STATE).open_output() as file:
        file.write(b"in progress")
        for position in (300, 400):
            store.save(position, payload(1), {})
        left = [path.relative_to(root.path).as_posix() for path in Path(root.path).rglob(f"*{PARTIAL}")]
        assert len(left) == 1 and left[0].startswith("position-000000000350/")
    assert sorted(os.listdir(root.path)) == [f"position-{position:012d}" for position in (200, 350, 400)]
    assert store.newest(200).position == 200 and store.newest().position == 400


# ---- in the background


class Gate:
    """A store whose writes wait until the test releases them, and that can be made to fail."""

    def __init__(self, store: CheckpointStore) -> None:
        self.store, self.open, self.failures = store, threading.Event(), 0
        self.writing = threading.Event()

    def save(self, *arguments):
        self.writing.set()
        assert self.open.wait(20)
        if self.failures:
            self.failures -= 1
            raise StorageError("cannot write there: No space left on device", transient=True)
        return self.store.save(*arguments)


def test_training_goes_on_while_a_checkpoint_is_written(root):
    gate = Gate(CheckpointStore(root))
    writer, log = BackgroundWriter(gate), []  # type: ignore[arg-type]
    writer.submit(100, payload(1), {"x": 1}, before=lambda: log.append("log"))
    assert gate.writing.wait(20) and log == ["log"]  # the log is written first
    assert writer.take() == {} and positions(root) == []
    writer.check()
    gate.open.set()
    writer.flush()
    told = writer.take()
    assert told["mebibytes"] > 0 and told["seconds"] > 0 and told["stall_seconds"] == 0 and writer.take() == {}
    assert gate.store.newest().position == 100


def test_one_at_a_time(root):
    gate = Gate(CheckpointStore(root))
    writer = BackgroundWriter(gate)  # type: ignore[arg-type]
    writer.submit(100, payload(1), {})
    second = threading.Thread(target=writer.submit, args=(200, payload(2), {}))
    second.start()
    second.join(0.3)
    assert second.is_alive()  # the second save waits for the first
    gate.open.set()
    second.join(20)
    writer.flush()
    assert positions(root) == ["position-000000000100", "position-000000000200"]


def test_storage_that_fails_for_a_while_is_tried_again(root):
    gate, lines = Gate(CheckpointStore(root)), []
    gate.failures = 2
    gate.open.set()
    writer = BackgroundWriter(gate, retry_timeout_s=20, tell=lines.append)  # type: ignore[arg-type]
    writer.submit(100, payload(1), {})
    writer.flush()
    assert gate.store.newest().position == 100
    assert len(lines) == 2 and "No space left on device; trying again for 20 s" in lines[0] and "works again after" in lines[1]


def test_storage_that_goes_on_failing_surfaces_at_the_next_step(root):
    gate = Gate(CheckpointStore(root))
    gate.store.save(100, payload(1), {})
    gate.failures = 99
    gate.open.set()
    writer = BackgroundWriter(gate, retry_timeout_s=0.6)  # type: ignore[arg-type]
    writer.submit(200, payload(2), {})
    writer._thread.join(20)
    with pytest.raises(UserError, match=r"position-000000000200 could not be written: .*No space.*one before it"):
        writer.check()
    writer.check()  # the error is raised once only
    assert gate.store.newest().position == 100


def test_a_full_disk_is_said_and_costs_no_checkpoint_that_is_there(tmp_path):
    with survival.small_disk(tmp_path / "disk", 1) as disk:
        store = CheckpointStore(open_storage(str(disk / "checkpoints")), keep=9)
        state = {"weight": torch.zeros(60_000)}  # 240 kB each
        writer, written = BackgroundWriter(store), 0
        with pytest.raises(UserError, match=r"position-\d+ could not be written: cannot write .*No space left on device"):
            while written < 9:
                writer.submit(written + 1, state, {})
                writer.flush()
                written += 1
        assert 0 < written < 9 and store.newest().position == written
        # With free space again the same checkpoint is written.
        store.keep = 1
        (store.root / f"position-{1:012d}").delete()
        writer.submit(written + 1, state, {})
        writer.flush()
        assert store.newest().position == written + 1


def test_plain_torch_restores_a_checkpoint(tmp_path):
    """Runs the code of docs/reliability.md."""
    page = (Path(__file__).parents[4] / "docs" / "reliability.md").read_text()
    code = page.split("<!-- restore -->")[1].split("```python")[1].split("```")[0]
    model = torch.nn.Linear(3, 2)
    student = {
        "parameters": dict(model.state_dict()),
        "buffers": {},
        "optimizer_steps": dict.fromkeys(model.state_dict(), 5.0),
        "moments": {"exp_avg": {"weight": torch.ones(2, 3)}, "exp_avg_sq": {"weight": torch.ones(2, 3)}},
    }
    store = CheckpointStore(open_storage(str(tmp_path / "run" / "checkpoints")))
    store.save(160, {"student": student, "objective": {"teacher.weight": torch.zeros(1), "center": torch.ones(2)}}, {})
    space = {"run": str(tmp_path / "run"), "model": torch.nn.Linear(3, 2)}
    exec(code, space)
    assert torch.equal(space["model"].weight, model.weight) and torch.equal(space["teacher"]["weight"], torch.zeros(1))
    assert torch.equal(space["optimizer"].state[space["model"].weight]["exp_avg"], torch.ones(2, 3))


@pytest.mark.parametrize("name", ["every_steps", "keep"])
def test_impossible_settings(name):
    with pytest.raises(ValueError, match=f"^{name} must be at least 1: got 0"):
        CheckpointConfig(**{name: 0})
    with pytest.raises(ValueError, match=r"keep_every_steps must be 0 or a multiple of every_steps \(500\): got 700"):
        CheckpointConfig(keep_every_steps=700)
