"""FSDP2 on several GPUs, or on several processes of a CPU: a network on scikit-learn's digits.

pip install . scikit-learn && torchrun --nproc-per-node 2 examples/fsdp2.py
"""

import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from salsa_fused import FusedSaLSa


def main(epochs: int = 10) -> float:
    """Train, and return the accuracy on images that were not trained on."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    dist.init_process_group("nccl" if on_gpu else "gloo")
    torch.manual_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32, device=device) / 16
    labels = torch.tensor(digits, device=device)
    train = TensorDataset(images[:1500], labels[:1500])
    sampler = DistributedSampler(train)  # each rank its part of every batch
    loader = DataLoader(train, batch_size=48 // dist.get_world_size(), sampler=sampler)

    first = nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.ReLU())
    second = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    model = nn.Sequential(first, second).to(device)
    for module in (first, second, model):
        fully_shard(module)
    optimizer = FusedSaLSa(model.parameters(), module=model, total_steps=epochs * len(loader))

    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for inputs, targets in loader:

            def closure(inputs=inputs, targets=targets):
                return nn.functional.cross_entropy(model(inputs), targets)

            loss = optimizer.step(closure)  # that of all ranks
        with torch.no_grad():
            accuracy = (model(images[1500:]).argmax(dim=1) == labels[1500:]).float().mean().item()
        if dist.get_rank() == 0:
            print(f"epoch {epoch + 1}: loss {loss:.4f}, accuracy {accuracy:.3f}")
    dist.destroy_process_group()
    return accuracy


if __name__ == "__main__":
    main()
