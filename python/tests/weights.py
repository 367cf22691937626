"""Dense weights for tests."""

import math

import torch


def like_trained(rows, cols, device="cpu", scale=0.8):
    """Gaussian weights whose rows differ in scale, as those of trained layers do."""
    rows_scale = torch.exp(0.1 * torch.randn(rows, 1, device=device))
    return (torch.randn(rows, cols, device=device) * rows_scale * scale / math.sqrt(cols)).bfloat16()


def all_patterns(cols=256):
    """Every bit pattern of BF16 once: NaNs, infinities, zeros of both signs, subnormals."""
    return torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).reshape(-1, cols).clone()


def corpus():
    """Names and matrices of all kinds: odd shapes, odd values."""
    for rows, cols in [(1, 1), (2, 10), (32, 64), (31, 63), (33, 65), (100, 300), (257, 1000)]:
        yield f"{rows}x{cols}", like_trained(rows, cols)
    yield "all bit patterns", all_patterns()
    yield "zeros", torch.zeros(64, 128, dtype=torch.bfloat16)
    yield "huge", like_trained(64, 128, scale=1e38)
    yield "subnormal", like_trained(64, 128, scale=1e-38)
    # Each weight of another exponent: nearly all lie outside of any window.
    yield "outliers", torch.exp2(torch.randint(-120, 120, (64, 192)).float()).bfloat16()
    for exponent in range(-20, -4):
        yield f"around 2^{exponent}", like_trained(48, 96, scale=2.0**exponent)


def bits(tensor):
    """A tensor that compares as bits do: NaNs too."""
    return tensor.view(torch.int16)
