"""The convolution stem against its plain definition."""

import pytest
import torch

from reidssl.models.ics import IcsStem, InstanceBatchNorm, _as_product, patch_products


def test_first_half_is_normalized_per_image_and_second_half_per_batch():
    maps = torch.randn(4, 6, 5, 3, generator=torch.Generator().manual_seed(0)) * 3 + 2
    norm = InstanceBatchNorm(6)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(3, generator=torch.Generator().manual_seed(parameter.ndim)))
    normalized = norm(maps)
    for half, layer, dims in ((maps[:, :3], norm.instance, (2, 3)), (maps[:, 3:], norm.batch, (0, 2, 3))):
        mean, variance = half.mean(dims, keepdim=True), half.var(dims, correction=0, keepdim=True)
        expected = (half - mean) / (variance + 1e-5).sqrt() * layer.weight.view(3, 1, 1) + layer.bias.view(3, 1, 1)
        position = slice(0, 3) if layer is norm.instance else slice(3, 6)
        torch.testing.assert_close(normalized[:, position], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_one_pass_equals_the_two_layers(training, layout):
    """Outputs, gradients and running statistics are equal. Two steps, so that the statistics have moved."""
    generator = torch.Generator().manual_seed(0)
    one, other = InstanceBatchNorm(6), InstanceBatchNorm(6)
    for parameter, twin in zip(one.parameters(), other.parameters(), strict=True):
        twin.data.copy_(parameter.data.copy_(torch.randn(3, generator=generator)))
    for norm in (one, other):
        norm.batch.momentum = 0.3
        norm.train(training)
    watched = []
    other.batch.register_forward_hook(lambda layer, inputs, output: watched.append(layer.running_mean.clone()))
    for _ in range(2):
        maps = (torch.randn(4, 6, 5, 3, generator=generator) * 3 + 2).contiguous(memory_format=layout)
        inputs = [maps.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2)]
        outputs = one(inputs[0]), other.in_one_pass(inputs[1])
        torch.testing.assert_close(*outputs, rtol=1e-6, atol=1e-6)
        assert outputs[1].is_contiguous(memory_format=layout)
        slope = torch.randn(4, 6, 5, 3, generator=generator)
        for output in outputs:
            output.backward(slope)
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-5, atol=1e-5)
        for parameter, twin in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(twin.grad, parameter.grad, rtol=1e-5, atol=1e-5)
        for buffer, twin in zip(one.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(twin, buffer, rtol=1e-6, atol=1e-6)
    assert len(watched) == 2 and list(one.state_dict()) == list(other.state_dict())


def test_only_batch_norm_keeps_statistics():
    stem = IcsStem(width=12, patch_size=8, stride=8, stem_width=4)
    kept = {name for name, _ in stem.named_buffers() if name.endswith("running_mean")}
    assert kept == {"norm1.batch.running_mean", "norm2.batch.running_mean", "norm3.running_mean"}
    images = torch.randn(3, 3, 16, 8)
    stem(images)
    assert all(stem.get_buffer(name).abs().sum() > 0 for name in kept)


@pytest.mark.parametrize(("patch_size", "stride", "grid"), [(16, 16, (4, 2)), (8, 8, (8, 4)), (8, 4, (15, 7))])
def test_grid(patch_size, stride, grid):
    stem = IcsStem(width=10, patch_size=patch_size, stride=stride, stem_width=4)
    assert stem(torch.randn(2, 3, 64, 32)).shape == (2, 10, *grid)
    assert stem.proj.kernel_size == (patch_size // 2, patch_size // 2)


def test_odd_sizes_are_refused():
    with pytest.raises(ValueError, match="even"):
        IcsStem(width=10, patch_size=7, stride=7)
    with pytest.raises(ValueError, match="stem_width must be even"):
        InstanceBatchNorm(5)


def test_compiled_norms_take_one_pass():
    """The compiler must not see the split halves: their instance norm would copy the maps to another memory format."""
    torch._dynamo.reset()
    operators = []

    def backend(graph, inputs):
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    norm, maps = InstanceBatchNorm(8).train(), torch.randn(2, 8, 4, 4)
    expected = InstanceBatchNorm(8).train()(maps)
    torch.testing.assert_close(torch.compile(norm, backend=backend)(maps), expected, rtol=1e-5, atol=1e-5)
    assert any("var_mean" in name for name in operators) and not any("instance_norm" in name for name in operators)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("size", "kernel"), [((16, 8), 8), ((35, 18), 8), ((12, 9), 3)])
@pytest.mark.parametrize("apart", [0, -1, 2])
def test_patches_as_a_matrix_product(memory, size, kernel, apart):
    """The same as the convolution, with gradients, also if patches overlap or lie apart, or rows and columns are left over."""
    projection = torch.nn.Conv2d(6, 5, kernel, stride=kernel + apart).double()
    maps = torch.randn(2, 6, *size, dtype=torch.double).to(memory_format=memory).requires_grad_()
    found, expected = _as_product(projection, maps), projection(maps)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad((each * weight).sum(), (maps, projection.weight)) for each in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("given", ["autocast", "bf16"])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride"), [(8, 8, 8), (24, 8, 4), (24, 4, 4), (16, 16, 12), (3, 16, 16), (64, 8, 8)]
)
def test_patches_in_bf16_on_a_cpu_are_those_in_fp32(channels, kernel, stride, given, monkeypatch):
    """On processors with AMX, torch's own convolution is wrong for some of these shapes, so that it must not be called."""
    projection = torch.nn.Conv2d(channels, 32, kernel, stride=stride)
    maps = torch.randn(4, channels, 32, 16, generator=torch.Generator().manual_seed(0))
    expected = patch_products(projection, maps)
    maps, projection = (maps.bfloat16(), projection.bfloat16()) if given == "bf16" else (maps, projection)
    monkeypatch.delattr(torch.nn.Conv2d, "forward")
    with torch.autocast("cpu", torch.bfloat16, enabled=given == "autocast"):
        found = patch_products(projection, maps)
    assert found.dtype == torch.bfloat16 and (found - expected).norm() < 0.02 * expected.norm()
