"""The Hugging Face Trainer: a small vision transformer on scikit-learn's digits.

pip install '.[transformers]' scikit-learn && python examples/transformers_trainer.py
"""

import torch
from sklearn.datasets import load_digits
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification

from salsa_fused.integrations.transformers import SaLSaTrainer


def main(epochs: float = 15, folder: str = "digits-vit", **arguments) -> float:
    """Train, and return the accuracy on images that were not trained on."""
    torch.manual_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    data = [{"pixel_values": x, "labels": y} for x, y in zip(images, digits.tolist())]

    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        num_labels=10,
    )
    trainer = SaLSaTrainer(
        model=ViTForImageClassification(config),
        args=TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=25,
            gradient_accumulation_steps=2,
            weight_decay=0.01,
            logging_steps=30,
            save_strategy="no",
            report_to=[],
            **arguments,
        ),
        train_dataset=data[:1500],
        eval_dataset=data[1500:],
        compute_metrics=lambda found: {
            "accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())
        },
    )
    trainer.train()
    return trainer.evaluate()["eval_accuracy"]


if __name__ == "__main__":
    print(f"accuracy {100 * main():.1f} %")
