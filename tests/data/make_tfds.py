"""Makes the small sets under tests/data/tfds, in the real format of tensorflow-datasets.

    python -m venv venv && venv/bin/pip install 'poster_jax[tfds-prepare]'
    venv/bin/python tests/data/make_tfds.py

The builders have the names, versions and features of the real mnist, cifar10, cifar100 and
imagenet2012 (and one set has a config and no test split); the pictures are drawn here, some bars on
a ground, so that a reader that swaps, shifts or scales anything gives other numbers than `picture`
and `photograph`, which the tests import. Made with tensorflow-cpu 2.21.0, tensorflow-datasets
4.9.10, array_record 0.8.6.
"""

import io
import pathlib
import shutil
from typing import ClassVar

import numpy as np

HERE = pathlib.Path(__file__).parent
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer"]
CIFAR10 += ["dog", "frog", "horse", "ship", "truck"]
SIZES = {"train": 20, "test": 10, "validation": 6}


def picture(split: str, index: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, int]:
    """uint8 picture and label of one example; known from its split and place alone."""
    number = index + (100 if split == "test" else 0)
    height, width, channels = shape
    rows, columns = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    shade = 10 * (1 + np.arange(channels))[None, None, :] + number
    bar = (rows // 4 == number % 7) | (columns // 4 == number % 5)
    return np.where(bar, 255 - shade, shade).astype(np.uint8), (3 * number + 1) % 10


def photograph(split: str, index: int) -> tuple[bytes, int]:
    """JPEG file and label of one of ImageNet's: shapes vary, one is grey, one has four inks."""
    from PIL import Image

    shape = (40 + 7 * (index % 3), 34 + 5 * (index % 5), 3)
    pixels, number = picture("train" if split == "train" else "test", index, shape)
    mode = {4: "L", 5: "CMYK"}.get(index, "RGB")
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", quality=90)
    return file.getvalue(), 97 * number + index


def main() -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.datasets.imagenet2012 import imagenet_common

    class Drawn(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        shape = (28, 28, 1)
        labels: ClassVar = {"num_classes": 10}
        splits = ("train", "test")
        more = ()

        @property
        def image(self):
            return {"shape": self.shape}

        def _info(self):
            features = {
                **dict(self.more),
                "image": tfds.features.Image(**self.image),
                "label": tfds.features.ClassLabel(**self.labels),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description="Bars on a ground, drawn by tests/data/make_tfds.py.",
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                # The order in which examples were generated, so that places are known.
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in self.splits}

        def _generate_examples(self, split):
            for index in range(SIZES[split]):
                pixels, number = self.draw(split, index)
                text = {"id": f"{split}_{index:05d}", "coarse_label": number % 20}
                text["file_name"] = text["id"] + ".JPEG"
                more = {name: text[name] for name, _ in self.more}
                yield index, {"image": pixels, "label": number, **more}

        def draw(self, split, index):
            return picture(split, index, self.shape)

    class Mnist(Drawn):
        VERSION = tfds.core.Version("3.0.1")

    class Cifar10(Drawn):
        VERSION = tfds.core.Version("3.0.2")
        shape = (32, 32, 3)
        labels: ClassVar = {"names": CIFAR10}
        more = (("id", tfds.features.Text()),)

    class Cifar100(Drawn):
        VERSION = tfds.core.Version("3.0.2")
        shape = (32, 32, 3)
        labels: ClassVar = {"num_classes": 100}

        def draw(self, split, index):
            pixels, number = super().draw(split, index)
            return pixels, 10 * number + index % 10

        more = (
            ("id", tfds.features.Text()),
            ("coarse_label", tfds.features.ClassLabel(num_classes=20)),
        )

    class Imagenet2012(Drawn):
        VERSION = tfds.core.Version("5.1.0")
        splits = ("train", "validation", "test")
        image: ClassVar = {"encoding_format": "jpeg"}
        labels: ClassVar = {"names_file": imagenet_common.label_names_file()}
        more = (("file_name", tfds.features.Text()),)

        def draw(self, split, index):
            file, number = photograph(split, index)
            # As in the real set, the test part has no labels.
            return io.BytesIO(file), -1 if split == "test" else number

    class Bars(Drawn):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="coarse"),)
        shape = (8, 8, 3)
        splits = ("train",)

    for builder, folder, file_format in (
        (Mnist, "tfds", "array_record"),
        (Cifar10, "tfds", "array_record"),
        (Cifar100, "tfds", "array_record"),
        (Imagenet2012, "tfds", "array_record"),
        (Bars, "tfds", "array_record"),
        (Mnist, "tfds_tfrecord", "tfrecord"),
    ):
        data_dir = HERE / folder
        shutil.rmtree(data_dir / builder.__name__.lower(), ignore_errors=True)
        builder(data_dir=str(data_dir), file_format=file_format).download_and_prepare()


if __name__ == "__main__":
    main()
