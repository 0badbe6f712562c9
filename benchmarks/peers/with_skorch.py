"""skorch: a NeuralNetClassifier over NumPy arrays, as in its documentation, its printed log, a checkpoint an epoch.

As it comes: a fifth of the examples is for validation after each epoch, in its time too. Without that in the variant
`plain`; without it, and over tensors instead of arrays, in the variant `tensors`.
"""

import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Checkpoint
from torch import nn
from workload import answer, asked, built, tensors

workload = asked(__doc__)
net = NeuralNetClassifier(
    built(workload),
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
