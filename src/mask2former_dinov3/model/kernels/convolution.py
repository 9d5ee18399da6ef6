"""A convolution whose gradient is fast on every CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

# B batch, C and D channels in and out


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` without bias at stride 1, for maps that are channels last in memory.

    On CPUs without AVX-512 torch computes the weights' gradient of such maps many times slower than the rest (3.8 s,
    while the convolution takes 0.5 s: 256 channels, 256 x 256, 3 x 3). On a CPU in float32 this gradient is therefore
    computed from channels-first copies; in all other cases torch's own is used.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, padding: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """maps (B, C, h, w) -> (B, D, h, w)."""
        ours = maps.device.type == "cpu" and maps.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not ours or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return super().forward(maps)
        result: Tensor = _Convolution.apply(maps, self.weight, self.padding)  # type: ignore[no-untyped-call]
        return result


class _Convolution(torch.autograd.Function):
    """maps (B, C, h, w), weight (D, C, k, k), padding -> (B, D, h, w). No double backward."""

    class Context(FunctionCtx):
        """What `forward` keeps for `backward`."""

        padding: tuple[int, int]
        needs_input_grad: tuple[bool, ...]
        saved_tensors: tuple[Tensor, ...]

    @staticmethod
    def forward(ctx: Context, maps: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.padding = padding
        return torch.conv2d(maps, weight, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight = ctx.saved_tensors
        settings = (None, (1, 1), ctx.padding, (1, 1), False, (0, 0), 1)  # bias, stride, padding, dilation, ...
        grad_maps = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_maps, _, _ = torch.ops.aten.convolution_backward(grad, maps, weight, *settings, (True, False, False))
        if ctx.needs_input_grad[1]:
            first = (x.contiguous() for x in (grad, maps, weight))
            _, grad_weight, _ = torch.ops.aten.convolution_backward(*first, *settings, (False, True, False))
        return grad_maps, grad_weight, None
