"""Train with Ignite: a supervised trainer and evaluator, the loss every 100 steps, a checkpoint per epoch."""

from time import perf_counter

import torch
from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer
from ignite.handlers import ModelCheckpoint
from ignite.metrics import Accuracy
from torch import nn
from workload import answer, build_network, loaders, parsed_workload

workload = parsed_workload(__doc__)
train_loader, test_loader = loaders(workload)
model = build_network(workload)
optimizer = torch.optim.SGD(model.parameters(), lr=workload.lr, momentum=workload.momentum)
trainer = create_supervised_trainer(model, optimizer, nn.CrossEntropyLoss())
evaluator = create_supervised_evaluator(model, metrics={"accuracy": Accuracy()})
seconds: list[float] = []


@trainer.on(Events.EPOCH_STARTED)
def begin(engine: Engine) -> None:
    engine.state.began = perf_counter()


@trainer.on(Events.ITERATION_COMPLETED(every=100))
def log_loss(engine: Engine) -> None:
    print(f"epoch {engine.state.epoch} iteration {engine.state.iteration} loss {engine.state.output:.4f}")


@trainer.on(Events.EPOCH_COMPLETED)
def end(engine: Engine) -> None:
    seconds.append(perf_counter() - engine.state.began)


saving = ModelCheckpoint("checkpoints", n_saved=1)
trainer.add_event_handler(Events.EPOCH_COMPLETED, saving, {"model": model, "optimizer": optimizer, "trainer": trainer})
trainer.run(train_loader, max_epochs=workload.epochs)
answer(workload, seconds, evaluator.run(test_loader).metrics["accuracy"])
