"""Accelerate: the loop of its guide, on scikit-learn's digits, without a learning rate.

pip install '.[accelerate]' scikit-learn && python examples/accelerate_loop.py
"""

import accelerate
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import salsa_fused.integrations.accelerate
from salsa_fused import FusedSaLSa

MICRO = 2  # micro-batches to a step


def main(epochs: int = 10, **settings) -> float:
    """Train, and return the accuracy on images that were not trained on."""
    accelerate.utils.set_seed(0)
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=MICRO, **settings)
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
    train = TensorDataset(images[:1500], labels[:1500])
    loader = DataLoader(train, batch_size=50 // MICRO, shuffle=True)

    hidden = nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.2)
    model = nn.Sequential(*hidden, nn.Linear(128, 10))
    optimizer = FusedSaLSa(model.parameters(), module=model, weight_decay=0.01)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    evaluate = salsa_fused.integrations.accelerate.evaluate(accelerator, optimizer, model)

    for epoch in range(epochs):
        model.train()
        for inputs, targets in loader:
            with accelerator.accumulate(model):

                def closure(inputs=inputs, targets=targets):
                    return nn.functional.cross_entropy(model(inputs), targets)

                loss = evaluate(closure)  # and once more for each trial, in optimizer.step()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            found = model(images[1500:].to(accelerator.device)).argmax(dim=1).cpu()
        accuracy = (found == labels[1500:]).float().mean().item()
        size = evaluate.metrics()["salsa/applied_step_size"]
        accelerator.print(
            f"epoch {epoch + 1}: loss {loss:.4f}, accuracy {accuracy:.3f}, step size {size:.1e}"
        )
    return accuracy


if __name__ == "__main__":
    main()
