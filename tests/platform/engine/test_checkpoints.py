"""Checkpoints: published atomically, kept, passed over when torn; on this machine and on S3."""

import pytest
import torch

from platform.engine.checkpoints import MANIFEST, STATE, CheckpointConfig, CheckpointStore
from platform.engine.errors import UserError
from platform.engine.storage import StorageConfig, StorageError, open_storage


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    if request.param == "local":
        return open_storage(str(tmp_path / "checkpoints"))
    server = request.getfixturevalue("s3")
    return open_storage(f"{server.uri}/run/checkpoints", StorageConfig(endpoint_url=server.endpoint_url))


def payload(value: float) -> dict:
    return {"student": {"parameters": {"weight": torch.full((3, 2), value, dtype=torch.float64)}, "step": 4.0},
            "names": ["a", "b"], "position": 7}


def positions(root) -> list[str]:
    return sorted({item.name.partition("/")[0] for item in root.list()})


def test_nothing_there(root):
    store = CheckpointStore(root)
    assert store.newest() is None and store.newest_position() == 0


def test_round_trip_and_keep(root):
    store = CheckpointStore(root, keep=2)
    for position in (100, 200, 1000):
        told = store.save(position, payload(position / 7), {"config": {"x": 1}})
        assert told["mebibytes"] > 0 and told["seconds"] >= 0
    assert positions(root) == ["position-000000000200", "position-000000001000"]
    found = CheckpointStore(root).newest()
    assert found.position == store.newest_position() == 1000
    assert found.metadata == {"config": {"x": 1}} and found.torn == ()
    assert torch.equal(found.payload["student"]["parameters"]["weight"], payload(1000 / 7)["student"]["parameters"]["weight"])
    assert found.payload["names"] == ["a", "b"] and found.payload["student"]["step"] == 4.0


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
    assert found.position == store.newest_position() == 100 and found.torn == ("position-000000000200",)
    assert found.payload["student"]["parameters"]["weight"][0, 0] == 1


def test_an_upload_without_manifest_is_not_there(root):
    store = CheckpointStore(root)
    store.save(100, payload(1), {})
    (root / "position-000000000200" / STATE).write_bytes(b"half")
    found = store.newest()
    assert found.position == 100 and found.torn == ()


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
    store.save(250, payload(2), {})  # continued from an older one, checkpoints now more often
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
    state.mkdir()  # cannot be read, and is not absent
    with pytest.raises(StorageError, match="cannot read"):
        store.newest()


@pytest.mark.parametrize("values", [{"every_steps": 0}, {"keep": 0}])
def test_impossible_settings(values):
    with pytest.raises(ValueError, match="every_steps and keep must be at least 1"):
        CheckpointConfig(**values)
