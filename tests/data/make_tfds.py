"""Makes the small sets under tests/data/tfds, in the real format of tensorflow-datasets.

    python -m venv venv && venv/bin/pip install 'poster_jax[tfds-prepare]'
    venv/bin/python tests/data/make_tfds.py

The builders have the names, versions and features of the real mnist and cifar10 (and one set has a
config and no test split); the pictures are drawn here, some bars on a ground, so that a reader that
swaps, shifts or scales anything gives other numbers than `picture`, which the tests import. Made
with tensorflow-cpu 2.21.0, tensorflow-datasets 4.9.10, array_record 0.8.6.
"""

import pathlib
import shutil

import numpy as np

HERE = pathlib.Path(__file__).parent
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer"]
CIFAR10 += ["dog", "frog", "horse", "ship", "truck"]
SIZES = {"train": 20, "test": 10}


def picture(split: str, index: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, int]:
    """uint8 picture and label of one example; known from its split and place alone."""
    number = index + (100 if split == "test" else 0)
    height, width, channels = shape
    rows, columns = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    shade = 10 * (1 + np.arange(channels))[None, None, :] + number
    bar = (rows // 4 == number % 7) | (columns // 4 == number % 5)
    return np.where(bar, 255 - shade, shade).astype(np.uint8), (3 * number + 1) % 10


def main() -> None:
    import tensorflow_datasets as tfds

    class Drawn(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        shape = (28, 28, 1)
        names = None
        splits = ("train", "test")
        more = ()

        def _info(self):
            kind = {"names": self.names} if self.names else {"num_classes": 10}
            features = {
                **dict(self.more),
                "image": tfds.features.Image(shape=self.shape),
                "label": tfds.features.ClassLabel(**kind),
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
                pixels, number = picture(split, index, self.shape)
                more = {name: f"{split}_{index:05d}" for name, _ in self.more}
                yield index, {"image": pixels, "label": number, **more}

    class Mnist(Drawn):
        VERSION = tfds.core.Version("3.0.1")

    class Cifar10(Drawn):
        VERSION = tfds.core.Version("3.0.2")
        shape = (32, 32, 3)
        names = CIFAR10
        more = (("id", tfds.features.Text()),)

    class Bars(Drawn):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="coarse"),)
        shape = (8, 8, 3)
        splits = ("train",)

    for builder, folder, file_format in (
        (Mnist, "tfds", "array_record"),
        (Cifar10, "tfds", "array_record"),
        (Bars, "tfds", "array_record"),
        (Mnist, "tfds_tfrecord", "tfrecord"),
    ):
        data_dir = HERE / folder
        shutil.rmtree(data_dir / builder.__name__.lower(), ignore_errors=True)
        builder(data_dir=str(data_dir), file_format=file_format).download_and_prepare()


if __name__ == "__main__":
    main()
