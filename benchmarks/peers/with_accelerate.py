"""Train with Accelerate: the PyTorch loop with prepared objects, a saved state per epoch."""

from time import perf_counter

import torch
from accelerate import Accelerator
from torch.nn import functional as F
from workload import answer, build_network, loaders, parsed_workload

workload = parsed_workload(__doc__)
accelerator = Accelerator(cpu=True)
model = build_network(workload)
optimizer = torch.optim.SGD(model.parameters(), lr=workload.lr, momentum=workload.momentum)
model, optimizer, train_loader, test_loader = accelerator.prepare(model, optimizer, *loaders(workload))
seconds: list[float] = []
for epoch in range(workload.epochs):
    began = perf_counter()
    model.train()
    for step, (images, labels) in enumerate(train_loader):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        accelerator.backward(loss)
        optimizer.step()
        if step % 100 == 0:
            accelerator.print(f"epoch {epoch} step {step} loss {loss.item():.4f}")
    seconds.append(perf_counter() - began)
    accelerator.save_state(f"epoch_{epoch}")

model.eval()
correct = 0
with torch.no_grad():
    for images, labels in test_loader:
        predicted, labels = accelerator.gather_for_metrics((model(images).argmax(1), labels))
        correct += int((predicted == labels).sum())
answer(workload, seconds, correct / len(test_loader.dataset))
