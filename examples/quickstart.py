"""A plain loop: a small network on scikit-learn's digits, and no learning rate.

pip install . scikit-learn && python examples/quickstart.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from salsa_fused import FusedSaLSa


def main(epochs: int = 10) -> float:
    """Train, and return the accuracy on images that were not trained on."""
    torch.manual_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    labels = torch.tensor(digits)
    train = torch.utils.data.TensorDataset(images[:1500], labels[:1500])
    loader = torch.utils.data.DataLoader(train, batch_size=50, shuffle=True)

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(16 * 64, 10),
    )
    # module= puts BatchNorm's statistics back after trials; total_steps= may be left out
    optimizer = FusedSaLSa(
        model.parameters(), module=model, total_steps=epochs * len(loader), weight_decay=0.01
    )
    for epoch in range(epochs):
        model.train()
        for inputs, targets in loader:

            def closure(inputs=inputs, targets=targets):
                return nn.functional.cross_entropy(model(inputs), targets)

            loss = optimizer.step(closure)
        model.eval()
        with torch.no_grad():
            right = model(images[1500:]).argmax(dim=1) == labels[1500:]
        accuracy = right.float().mean().item()
        print(
            f"epoch {epoch + 1}: loss {loss:.4f}, accuracy {100 * accuracy:.1f} %, "
            f"step size {optimizer.applied_step_size:.1e}"
        )
    return accuracy


if __name__ == "__main__":
    main()
