"""Train with skorch: a NeuralNetClassifier over NumPy arrays, as in its documentation, a checkpoint per epoch.

By default it validates on a fifth of the examples after each epoch, within its time. The variant `plain` does not; the
variant `tensors` does not either, and takes tensors instead of arrays.
"""

import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Checkpoint
from torch import nn
from workload import answer, build_network, parsed_workload, tensors

workload = parsed_workload(__doc__)
net = NeuralNetClassifier(
    build_network(workload),
    criterion=nn.CrossEntropyLoss,
    optimizer=torch.optim.SGD,
    optimizer__momentum=workload.momentum,
    lr=workload.lr,
    batch_size=workload.batch,
    max_epochs=workload.epochs,
    iterator_train__shuffle=True,
    iterator_valid__batch_size=workload.test_batch,
    **({"train_split": None} if workload.variant else {}),
    callbacks=[Checkpoint(monitor=None, dirname="checkpoints")],
)
images, labels = tensors(workload, train=True)
if workload.variant == "tensors":
    net.fit(images, labels)
else:
    net.fit(images.numpy(), labels.numpy())
images, labels = tensors(workload, train=False)
accuracy = float((torch.as_tensor(net.predict(images)) == labels).double().mean())
trained = sum(batch.get("train_batch_size", 0) for batch in net.history[0, "batches"])
answer(workload, [seconds * workload.examples / trained for seconds in net.history[:, "dur"]], accuracy)
