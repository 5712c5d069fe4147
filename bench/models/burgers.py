"""A physics-informed network (Raissi et al. 2019) for Burgers' equation u_t + u u_x = nu u_xx."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.models.small import mlp


class BurgersNet(nn.Module):
    """Rows (x, t, inside) -> the equation's residual where `inside` is 1, and u where it is 0.

    So one mean square of outputs and targets is the loss of both: the equation inside of the
    domain, where the target is 0, and the values on its edge.
    """

    def __init__(self, viscosity: float, width: int = 32, layers: int = 3) -> None:
        super().__init__()
        self.viscosity = viscosity
        self.layers = mlp(2, *[width] * layers, 1, activation=nn.Tanh)

    def forward(self, rows: Tensor) -> Tensor:
        points, inside = rows.split((2, 1), dim=1)
        wanted = torch.is_grad_enabled()  # not in a line search's trial, nor in an evaluation
        with torch.enable_grad():  # but the equation's own derivatives are needed in both
            points = points.detach().requires_grad_()
            u = self.layers(points)
            u_x, u_t = _derivative(u, points, keep=True).unbind(1)
            u_xx = _derivative(u_x, points, keep=wanted)[:, 0]
            residual = u_t + u[:, 0] * u_x - self.viscosity * u_xx
            outputs = torch.where(inside > 0, residual[:, None], u)
        return outputs if wanted else outputs.detach()


def _derivative(values: Tensor, points: Tensor, keep: bool) -> Tensor:
    """Of each row's value by its point; `keep`: it can be differentiated again."""
    (found,) = torch.autograd.grad(values.sum(), points, create_graph=keep, retain_graph=True)
    return found
