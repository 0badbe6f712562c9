"""Train with Keras on torch: compile and fit over arrays in memory, a CSV log and a checkpoint per epoch.

The network is the same PyTorch module, in Keras's TorchModuleWrapper. That is the best case for Keras: its own layers
would compute with another order of dimensions.
"""

import os
from time import perf_counter

os.environ["KERAS_BACKEND"] = "torch"
os.environ.setdefault("KERAS_HOME", ".keras")  # in the run's folder, not the user's

import keras
from networks import SHAPES
from workload import answer, build_network, parsed_workload, tensors

workload = parsed_workload(__doc__)
keras.utils.set_random_seed(workload.seed)


class Clock(keras.callbacks.Callback):
    """Measure the seconds of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self.began = perf_counter()

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.seconds.append(perf_counter() - self.began)


inputs = keras.Input(SHAPES[workload.data])
model = keras.Model(inputs, keras.layers.TorchModuleWrapper(build_network(workload), output_shape=(None, 10))(inputs))
model.compile(
    optimizer=keras.optimizers.SGD(workload.lr, momentum=workload.momentum),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
clock = Clock()
records = [
    keras.callbacks.CSVLogger("log.csv"),
    keras.callbacks.ModelCheckpoint("model.weights.h5", save_weights_only=True),
]
images, labels = (each.numpy() for each in tensors(workload, train=True))
model.fit(images, labels, batch_size=workload.batch, epochs=workload.epochs, verbose=2, callbacks=[clock, *records])
images, labels = (each.numpy() for each in tensors(workload, train=False))
_, accuracy = model.evaluate(images, labels, batch_size=workload.test_batch, verbose=0)
answer(workload, clock.seconds, accuracy)
