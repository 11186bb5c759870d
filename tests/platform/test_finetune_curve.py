"""Fine-tuning: the same losses and weights on any number of workers and, except for an ics stem, for any cut of the batch."""

import json
from pathlib import Path

import pytest
import torch

from platform.engine.data.image_set import ImageSet
from platform.engine.inference.evaluation import evaluate_features
from platform.engine.inference.models import load_model
from platform.engine.runs.metrics import read_metrics
from platform.engine.schemas.retrieval_settings import EvaluateConfig
from platform.engine.storage.location import StorageConfig, open_storage
from reidssl.models.weights import load_reid
from tests.fixtures_runs import embed_all
from tests.platform.test_curve import distance, spawn
from tests.tiny import MODEL

# SGD, so that steps are as exact as gradients: Adam turns the rounding of a gradient near 0 into a full step.
COMMON = [
    "augment.pad=4",
    "augment.erasing=0.5",
    "supervised.optimizer=sgd",
    "supervised.learning_rate=0.01",
    "supervised.epochs=2",
    "supervised.drop_path=0.2",
    "unsupervised.learning_rate=0.01",
    "unsupervised.drop_path=0.3",
    "supervised.batch.identities=4",
    "supervised.batch.instances=3",
    "unsupervised.batch.instances=3",
]
# 4 x 3 images in 4 pieces of 3 or 2 of 6. Without labels a batch has up to 4 clusters, so pieces may have unequal sizes.
SOFTMAX: list[str] = []
MARGIN = ["supervised.identity=arcface", "supervised.center_weight=0.05"]
# With seed 2 no image is at the edge of a cluster, where rounding would decide.
UNLABELED = ["setting=usl", "unsupervised.hard=true", "unsupervised.epochs=3", "seed=2"]
STEMS = {stem: [*MODEL, "model.width=32", "model.depth=2", f"model.stem={stem}"] for stem in ("patch", "ics")}
JIGSAW = ["supervised.jigsaw.parts=4", "supervised.jigsaw.shift=3", "supervised.identity=cosface"]
TEACHER = [*UNLABELED, "unsupervised.ema_momentum=0.8", "unsupervised.teacher_weight=0.5"]
KINDS = {"teacher": TEACHER, "softmax": SOFTMAX, "jigsaw": JIGSAW, "margin": MARGIN, "usl": UNLABELED}


def overrides(kind: str, stem: str, pieces: int) -> list[str]:
    return [
        *COMMON,
        *KINDS[kind],
        *STEMS[stem],
        *(f"{phase}.batch.micro_batches={pieces}" for phase in ("supervised", "unsupervised")),
    ]


def work(folder: Path, world: int, data: str, kinds: list[tuple[str, str, int]]) -> None:
    """Run every (kind, stem, pieces of a batch) with `world` workers, into `<kind>-<stem>-<pieces>-<world>`."""
    runs = [[f"{kind}-{stem}-{pieces}-{world}", overrides(kind, stem, pieces)] for kind, stem, pieces in kinds]
    spawn("tests.platform.finetune_worker", folder, world, {"world": world, "data": data, "runs": runs})


def check_alike(one: Path, other: Path, exact: float) -> None:
    """Assert equal losses and terms to a relative 1e-4, and equal weights and batch-norm statistics to `exact` of their norm.

    An epoch with other pseudo-labels ends the comparison, because rounding alone can move an image at the edge of a cluster. The
    first epoch is always compared.
    """
    rows, reference = (
        [
            {name: value for name, value in row.items() if not name.endswith(("time", "seconds", "per_second"))}
            for row in read_metrics(open_storage(str(run)))
        ]
        for run in (one, other)
    )
    assert len(rows) == len(reference) > 1
    for epoch, (row, expected) in enumerate(zip(rows, reference, strict=True)):
        if epoch and any(row.get(name) != expected.get(name) for name in ("clusters", "outliers", "adjusted_rand_index")):
            print(f"{one.name}: other pseudo-labels than {other.name} from epoch {epoch + 1} on")
            return
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-6), one.name
    assert len({row["loss"] for row in reference}) == len(reference)
    assert distance(weights_of(one), weights_of(other)) < exact, one.name


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    state = load_reid(run / "model.safetensors").state_dict()
    return {name: value for name, value in state.items() if value.is_floating_point()}


@pytest.mark.timeout(1200)  # a minute alone, many times longer on a busy machine
def test_one_and_two_workers_and_an_uncut_batch(tmp_path, tiny_labeled):
    data = tiny_labeled.uri
    cut = [("softmax", "patch", 2), ("teacher", "ics", 2), ("jigsaw", "patch", 2)]
    work(tmp_path, 1, data, [("softmax", "patch", 1), *cut])
    work(tmp_path, 2, data, cut)
    check_alike(tmp_path / "softmax-patch-2-1", tmp_path / "softmax-patch-1-1", 1e-5)
    check_alike(tmp_path / "softmax-patch-2-2", tmp_path / "softmax-patch-1-1", 1e-5)
    check_alike(tmp_path / "teacher-ics-2-2", tmp_path / "teacher-ics-2-1", 1e-5)
    check_alike(tmp_path / "jigsaw-patch-2-2", tmp_path / "jigsaw-patch-2-1", 1e-5)
    # The model of the run, loaded as for evaluation, has the features that the run was judged by.
    run = tmp_path / "jigsaw-patch-2-1"
    model = load_model(str(run), StorageConfig())
    query, gallery = (ImageSet(tiny_labeled, [split], (64, 32)) for split in ("query", "gallery"))
    found = evaluate_features(query, gallery, embed_all(model, query), embed_all(model, gallery), EvaluateConfig())
    assert found["mAP"] == pytest.approx(json.loads((run / "summary.json").read_text())["mAP"], abs=1e-5)
    assert model.embed(query.batch([0])).shape == (1, 5 * 32) and model.features(query.batch([0])).shape == (1, 32)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_losses_and_stems_on_one_two_and_four_workers(tmp_path, tiny_labeled):
    data = tiny_labeled.uri
    kinds = [(kind, stem) for kind in KINDS for stem in STEMS]
    whole, cut = ([(*kind, pieces) for kind in kinds] for pieces in (1, 4))
    work(tmp_path, 1, data, whole + cut)
    for world in (2, 4):
        work(tmp_path, world, data, cut)
    for kind, stem in kinds:
        for world in (2, 4):
            check_alike(tmp_path / f"{kind}-{stem}-4-{world}", tmp_path / f"{kind}-{stem}-4-1", 1e-5)
        if stem == "patch":  # this backbone has no batch norm
            check_alike(tmp_path / f"{kind}-{stem}-4-1", tmp_path / f"{kind}-{stem}-1-1", 1e-5)
        else:
            cut, whole = (weights_of(tmp_path / f"{kind}-{stem}-{pieces}-1") for pieces in (4, 1))
            assert distance(cut, whole) > 1e-5  # the stem's batch norm sees single pieces


@pytest.mark.slow  # four runs on two workers; sweeps share features in the ordinary tests
@pytest.mark.timeout(900)
def test_runs_share_the_features_of_their_initial_weights(tmp_path, tiny_labeled, tiny_backbone):
    """Query, gallery and training images are extracted once, and no result changes."""
    common = [*COMMON, *UNLABELED, "evaluate_start=true", f"checkpoint={tiny_backbone}", "unsupervised.batch.micro_batches=2"]
    shared = [*common, f"start_features={tmp_path}/shared"]
    other = [*shared, "unsupervised.cluster.eps=0.55"]

    def runs(*named):
        spawn("tests.platform.finetune_worker", tmp_path, 2, {"world": 2, "data": tiny_labeled.uri, "runs": list(named)})
        return {file.name: file.stat().st_mtime_ns for file in (tmp_path / "shared").iterdir()}

    made = runs(["first", shared])
    assert len(made) == 3 and all(name.endswith(".npy") for name in made)
    assert runs(["alone", common], ["second", shared], ["other", other]) == made
    results = [read_metrics(open_storage(str(tmp_path / run))) for run in ("alone", "first", "second")]
    assert {row["epoch"] for row in results[0]} == {0, 1, 2, 3}
    for run, rows in zip(("first", "second"), results[1:], strict=True):
        assert [row["mAP"] for row in rows if "mAP" in row] == [row["mAP"] for row in results[0] if "mAP" in row]
        assert distance(weights_of(tmp_path / run), weights_of(tmp_path / "alone")) == 0
