"""skorch: a NeuralNetClassifier over data in memory, its printed log, a checkpoint an epoch.

Over NumPy arrays, as in its own documentation; over tensors, which it takes too, in the variant `tensors`.
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
    train_split=None,
    callbacks=[Checkpoint(monitor=None, dirname="checkpoints")],
)
images, labels = tensors(workload, train=True)
if workload.variant == "tensors":
    net.fit(images, labels)
else:
    net.fit(images.numpy(), labels.numpy())
images, labels = tensors(workload, train=False)
accuracy = float((torch.as_tensor(net.predict(images)) == labels).double().mean())
answer(workload, net.history[:, "dur"], accuracy)
