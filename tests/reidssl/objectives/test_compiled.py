"""Compiled backbones on a CPU: the same numbers, one graph for each crop size, and unchanged checkpoints."""

import torch
from torch._dynamo.testing import CompileCounterWithBackend

from platform.engine.train.step import StepBatchNorm
from reidssl.models.model_config import VitConfig
from reidssl.objectives.base import Progress
from reidssl.objectives.dino import Dino, DinoConfig

DINO = DinoConfig(out_dim=20, hidden=12, bottleneck=6)


def crops(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(3, 3, *size, generator=generator) for size in ((32, 16), (32, 16), (16, 8), (16, 8))]


def test_same_numbers_and_one_graph_for_each_size():
    """With the hooks that collect batch statistics, as in a run. Traced as on a GPU, but the operators run one by one."""
    torch._dynamo.reset()
    config = VitConfig(width=24, depth=1, heads=3, patch_size=8, image_size=(32, 16), stem_width=8)
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
    assert counter.frame_count == 3  # two sizes for the student, one for the teacher: no graph breaks, no recompilation
    assert list(compiled.state_dict()) == list(plain.state_dict())
    copy = compiled.export_backbone()
    assert copy._compiled_call_impl is None
    torch.testing.assert_close(copy(crops(0)[0]), plain.export_backbone()(crops(0)[0]), rtol=1e-5, atol=1e-5)
