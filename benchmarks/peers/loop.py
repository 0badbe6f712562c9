"""Train with the least eager code: a loop over tensors in memory, plain torch.optim.SGD, fp32, no records."""

from time import perf_counter

import torch
from torch.nn import functional as F
from workload import answer, build_network, parsed_workload, tensors

workload = parsed_workload(__doc__)
images, labels = tensors(workload, train=True)
model = build_network(workload)
optimizer = torch.optim.SGD(model.parameters(), lr=workload.lr, momentum=workload.momentum)
seconds: list[float] = []
for _ in range(workload.epochs):
    began = perf_counter()
    for chosen in torch.randperm(len(labels)).split(workload.batch):
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    seconds.append(perf_counter() - began)

model.eval()
images, labels = tensors(workload, train=False)
with torch.no_grad():
    predicted = torch.cat([model(batch).argmax(1) for batch in images.split(workload.test_batch)])
torch.save(model.state_dict(), "model.pth")
answer(workload, seconds, (predicted == labels).double().mean().item())
