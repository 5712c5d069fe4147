"""Lightning: a small network on scikit-learn's digits, with a callback and no learning rate.

pip install '.[lightning]' scikit-learn && python examples/lightning_trainer.py
"""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from salsa_fused import FusedSaLSa
from salsa_fused.integrations.lightning import SaLSaCallback


class Digits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        hidden = nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.2)
        self.net = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(128, 10))

    def training_step(self, batch, index):
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, index):
        images, labels = batch
        right = self.net(images).argmax(dim=1) == labels
        self.log("accuracy", right.float().mean(), prog_bar=True)

    def configure_optimizers(self):
        steps = int(self.trainer.estimated_stepping_batches)  # may be left out
        return FusedSaLSa(self.parameters(), module=self, total_steps=steps, weight_decay=0.01)


def main(epochs: int = 10, **settings) -> float:
    """Train, and return the accuracy on images that were not trained on."""
    lightning.seed_everything(0, verbose=False)
    pixels, digits = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits))
    train, rest = (torch.utils.data.Subset(data, part) for part in (range(1500), range(1500, 1797)))
    trainer = lightning.Trainer(
        max_epochs=epochs,
        callbacks=[SaLSaCallback()],
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        **settings,
    )
    loader = DataLoader(train, batch_size=25, shuffle=True)
    trainer.fit(Digits(), loader, DataLoader(rest, batch_size=297))
    return trainer.callback_metrics["accuracy"].item()


if __name__ == "__main__":
    print(f"accuracy {100 * main():.1f} %")
