"""Compiled backbones on a CPU: the same numbers, one graph of a block for each crop size, and unchanged checkpoints."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from platform.engine.train.step import StepBatchNorm
from reidssl.models.drop_path import TensorDropPath
from reidssl.models.model_config import VitConfig
from reidssl.objectives import build_objective
from reidssl.objectives.base import Progress
from reidssl.objectives.dino import Dino, DinoConfig
from reidssl.objectives.objective_config import ObjectiveConfig

GRAPHS = 6
"""Embedding and block, each for two crop sizes of the student and one of the teacher: no graph breaks, no recompilation."""
DINO = DinoConfig(out_dim=20, hidden=12, bottleneck=6)


def crops(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(3, 3, *size, generator=generator) for size in ((32, 16), (32, 16), (16, 8), (16, 8))]


def config_of(depth: int, drop_path: float) -> VitConfig:
    return VitConfig(width=24, depth=depth, heads=3, patch_size=8, image_size=(32, 16), stem_width=8, drop_path=drop_path)


def test_same_numbers_and_one_graph_for_each_size():
    """With the hooks that collect batch statistics, as in a run. Traced as on a GPU, but the operators run one by one."""
    torch._dynamo.reset()
    config = config_of(3, 0.0)
    counter = CompileCounterWithBackend("aot_eager")
    plain, compiled = Dino(config, DINO).train(), Dino(config, DINO).train()
    norms = [StepBatchNorm(objective) for objective in (plain, compiled)]
    compiled.compile_backbones(backend=counter)
    for step in range(2):
        outputs = [objective(objective.student, crops(step), Progress(0, 10, 100)) for objective in (plain, compiled)]
        for output in outputs:
            output.loss.backward()
        torch.testing.assert_close(outputs[1].loss, outputs[0].loss, rtol=1e-6, atol=1e-6)
        for (name, parameter), other in zip(plain.student.named_parameters(), compiled.student.parameters(), strict=True):
            assert (other.grad - parameter.grad).norm() <= 1e-4 * parameter.grad.norm() + 1e-6, name
        collected = [each.micro_batch_done() for each in norms]
        assert collected[0].keys() == collected[1].keys() and len(collected[0]) == 6
        for name, value in collected[0].items():
            torch.testing.assert_close(collected[1][name], value, rtol=1e-6, atol=1e-6)
    assert counter.frame_count == GRAPHS
    assert list(compiled.state_dict()) == list(plain.state_dict())
    copy = compiled.export_backbone()
    torch.testing.assert_close(copy(crops(0)[0]), plain.export_backbone()(crops(0)[0]), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == GRAPHS  # the copy is not compiled


@pytest.mark.parametrize(("name", "views", "graphs"), [("dino", 4, 6), ("dino_mim", 4, 6), ("moco_v3", 2, 4), ("moby", 2, 4)])
def test_blocks_with_drop_path_share_a_graph(name, views, graphs):
    """Every objective, with blocks whose rates differ: no graph breaks, no recompilation in the second step."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    objective = build_objective(config_of(4, 0.3), ObjectiveConfig(name=name)).train()
    objective.compile_backbones(backend=counter)
    for step in range(2):
        objective(objective.student, crops(step)[:views], Progress(0, 10, 100)).loss.backward()
    assert counter.frame_count == graphs
    assert [round(1 - float(block.drop_path1.keep), 3) for block in objective.student.backbone.blocks] == [0.0, 0.1, 0.2, 0.3]


def test_a_compiled_model_can_be_exported():
    """As the published layers, not in the form of the compiler."""
    torch._dynamo.reset()
    backbone = Dino(config_of(1, 0.1), DINO).export_backbone()
    program = torch.export.export(backbone, (crops(0)[0],), strict=False)
    operators = {str(node.target) for node in program.graph.nodes}
    assert any("instance_norm" in name for name in operators) and not any("var_mean" in name for name in operators)


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_drop_path_by_tensor(rate):
    """Images are dropped at the rate, the others are scaled up, and an evaluation changes nothing."""
    torch.manual_seed(0)
    layer, ones = TensorDropPath(rate, torch.device("cpu")), torch.ones(4000, 2, 3)
    found = layer(ones)
    kept = found[:, 0, 0] > 0
    assert (found == torch.where(kept, 1 / (1 - rate), 0)[:, None, None]).all()
    assert abs(float(kept.float().mean()) - (1 - rate)) < 0.02
    assert torch.equal(layer.eval()(ones), ones)
