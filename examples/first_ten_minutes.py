"""A first tour on scikit-learn's digits: beside AdamW, step sizes, save and resume.

pip install . scikit-learn && python examples/first_ten_minutes.py
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from salsa_fused import FusedSaLSa

pixels, digits = load_digits(return_X_y=True)
images, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))


def train(model, optimizer, steps: range) -> str:
    """Train on 50 images a step; the accuracy is that on images that it has not seen."""
    model.train()
    for step in steps:
        batch = torch.randperm(1500, generator=torch.Generator().manual_seed(step))[:50]
        if isinstance(optimizer, FusedSaLSa):
            optimizer.step(lambda b=batch: cross_entropy(model(images[b]), labels[b]))
        else:
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    found = model.eval()(images)
    loss = cross_entropy(found[:1500], labels[:1500])
    right = (found[1500:].argmax(dim=1) == labels[1500:]).float().mean()
    return f"training loss {loss:.5f}, accuracy {100 * right:.1f} %"


def main(steps: int = 500) -> None:
    for lr in (1e-4, 1e-3, 1e-2):  # which one is right?
        model = make_model()
        adamw = torch.optim.AdamW(model.parameters(), lr=lr)
        print(f"AdamW with lr={lr:g}: {train(model, adamw, range(steps))}")
    model = make_model()
    optimizer = FusedSaLSa(model.parameters(), module=model)  # none to choose
    for start in range(0, steps, steps // 5):
        found = train(model, optimizer, range(start, start + steps // 5))
        print(f"FusedSaLSa: {found}, applied step size {optimizer.applied_step_size:.1e}")
    print(f"suggested for AdamW: lr={optimizer.suggested_lr():.1e}; {optimizer.metrics()}")
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict()])  # or torch.save(..., path)
    once = train(model, optimizer, range(steps, steps + 50))
    for part, state in zip((model, optimizer), saved):
        part.load_state_dict(state)
    again = train(model, optimizer, range(steps, steps + 50))
    print(f"50 steps more: {once}; from the checkpoint once more: {again}; equal: {once == again}")


if __name__ == "__main__":
    main()
