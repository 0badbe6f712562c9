"""Train with Lightning: a LightningModule and a Trainer with its default logger, progress bar and checkpoints."""

from time import perf_counter

import lightning
import torch
from torch import Tensor
from torch.nn import functional as F
from workload import answer, build_network, loaders, parsed_workload

workload = parsed_workload(__doc__)
train_loader, test_loader = loaders(workload)


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = build_network(workload)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        self.log("train_loss", loss)
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        self.log("test_accuracy", (self.model(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=workload.lr, momentum=workload.momentum)


class Clock(lightning.Callback):
    """Measure the seconds of each training epoch, without its checkpoint."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *_: object) -> None:
        self.began = perf_counter()

    def on_train_epoch_end(self, *_: object) -> None:
        self.seconds.append(perf_counter() - self.began)


clock = Clock()
trainer = lightning.Trainer(accelerator="cpu", max_epochs=workload.epochs, callbacks=[clock])
module = Module()
trainer.fit(module, train_loader)
answer(workload, clock.seconds, trainer.test(module, test_loader, verbose=False)[0]["test_accuracy"])
