"""Train like the PyTorch tutorials: torchvision transforms, a DataLoader, a printed loss, a checkpoint per epoch."""

from time import perf_counter

import torch
from torch.nn import functional as F
from workload import answer, build_network, loaders, parsed_workload

workload = parsed_workload(__doc__)
train_loader, test_loader = loaders(workload)
model = build_network(workload)
optimizer = torch.optim.SGD(model.parameters(), lr=workload.lr, momentum=workload.momentum)
seconds: list[float] = []
for epoch in range(workload.epochs):
    began = perf_counter()
    for step, (images, labels) in enumerate(train_loader):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"epoch {epoch} step {step} loss {loss.item():.4f}")
    seconds.append(perf_counter() - began)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, f"{epoch}.pt")

model.eval()
correct = 0
with torch.no_grad():
    for images, labels in test_loader:
        correct += int((model(images).argmax(1) == labels).sum())
answer(workload, seconds, correct / len(test_loader.dataset))
