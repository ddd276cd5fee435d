"""Test double of FusedClipNorm: L2 norm of all gradients, clipped in place."""

import habana_frameworks.torch.core as htcore
import torch


class FusedClipNorm:
    def __init__(self, parameters, max_norm):
        self.max_norm_t = torch.ones(1, device="hpu") * float(max_norm)

    @torch.no_grad()
    def clip_norm(self, parameters) -> torch.Tensor:
        """The norm before clipping, a tensor of one element; 0.0 without gradients."""
        if isinstance(parameters, torch.Tensor):
            parameters = [parameters]
        grads = [param.grad for param in parameters if param.grad is not None]
        if not grads:
            return torch.tensor(0.0)
        htcore.mark_step()
        norm = torch.stack([grad.pow(2).sum() for grad in grads]).sum().sqrt().reshape(1)
        factor = (self.max_norm_t / (norm + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factor.to(grad.dtype))
        htcore.mark_step()
        return norm
