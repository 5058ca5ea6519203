"""A ViT and its image processor, end to end on real images."""

import numpy as np
import pytest

import glassformer as gf
from glassformer.data import AutoImageProcessor, ImageProcessor
from glassformer.models.auto import AutoModelForImageClassification
from glassformer.models.vit import ViTConfig, ViTForImageClassification
from glassformer.training import Trainer, TrainingArguments

DIGITS = ViTConfig.from_dict(
    {
        "image_size": 8,
        "patch_size": 2,
        "num_channels": 1,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "num_labels": 10,
    }
)


def handwritten_digits():
    """1,797 pixel values (1, 8, 8) and their classes, shuffled; and the processor's settings."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    processor = ImageProcessor(
        do_resize=False, rescale_factor=1 / 16, image_mean=[0.5], image_std=[0.5]
    )
    order = np.random.default_rng(0).permutation(len(digits.target))
    pixels = processor(list(digits.images[order]), return_tensors="np").pixel_values
    pairs = zip(pixels, digits.target[order], strict=True)
    return [{"pixel_values": x, "labels": y} for x, y in pairs], processor


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def test_a_vit_learns_handwritten_digits_and_is_the_same_from_its_folder(tmp_path):
    items, processor = handwritten_digits()
    train, test = items[:1437], items[1437:]
    gf.manual_seed(0)
    model = ViTForImageClassification(DIGITS)
    settings = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        num_train_epochs=16,
        learning_rate=3e-3,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=128,
        warmup_ratio=0.1,
        save_strategy="no",
        seed=0,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model, settings, train_dataset=train, eval_dataset=test, compute_metrics=accuracy
    )
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.9  # chance is 0.1; five seeds gave 0.95 to 0.97

    model.eval().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    image = (np.arange(64).reshape(8, 8) % 17).astype(np.uint8)
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "model")(image).pixel_values
    np.testing.assert_array_equal(
        again(pixels).logits.detach().numpy(),
        model(processor(image).pixel_values).logits.detach().numpy(),
    )
