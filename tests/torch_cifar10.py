"""The recipe `cifar10-resnet18` in PyTorch: the same network, schedule and views, to set its curve beside ours.

usage: python3 torch_cifar10.py CIFAR_BINARY_FOLDER EPOCHS [f32] [lr=0.03] [batch=512] [seed=0] [out=FILE]
Needs a GPU, PyTorch and torchvision. Views are made on the GPU, a batch at a time, with torchvision's distributions (no
blur, as in the recipe). Prints the loss and what nearest neighbours make of the features; `out` gets the loss of every step.
"""
import json
import math
import pathlib
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision.transforms._functional_tensor as T

from torch_step import SimSiam


def load(folder, pattern):
    data = b"".join(path.read_bytes() for path in sorted(pathlib.Path(folder).glob(pattern)))
    records = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, 3073).cuda()
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()


def uniform(n, low, high):
    return torch.rand(n, device="cuda") * (high - low) + low


def crops(images):
    n, side = len(images), images.shape[-1]
    area = side * side * uniform(n, 0.2, 1.0)
    ratio = torch.exp(uniform(n, math.log(3 / 4), math.log(4 / 3)))
    w = (area * ratio).sqrt().round().clamp(1, side)
    h = (area / ratio).sqrt().round().clamp(1, side)
    left = (torch.rand(n, device="cuda") * (side - w + 1)).floor()
    top = (torch.rand(n, device="cuda") * (side - h + 1)).floor()
    # Output pixel centres in the crop, kept inside it as a resize of the crop would.
    place = (torch.arange(side, device="cuda") + 0.5) / side
    xs = left[:, None] + (place * w[:, None]).clamp(min=0.5).minimum(w[:, None] - 0.5)
    ys = top[:, None] + (place * h[:, None]).clamp(min=0.5).minimum(h[:, None] - 0.5)
    flip = torch.rand(n, device="cuda") < 0.5
    xs = torch.where(flip[:, None], xs.flip(1), xs)
    grid = torch.stack([xs[:, None, :].expand(n, side, side), ys[:, :, None].expand(n, side, side)], -1)
    return F.grid_sample(images, grid / side * 2 - 1, mode="bilinear", align_corners=False)


def blend(a, b, factor):
    factor = factor[:, None, None, None]
    return (factor * a + (1 - factor) * b).clamp(0, 1)


def gray(x):
    return (0.2989 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]).expand_as(x)


def jitter(x):
    n = len(x)
    for operation in torch.randperm(4).tolist():
        if operation == 0:
            x = blend(x, torch.zeros_like(x), uniform(n, 0.6, 1.4))
        elif operation == 1:
            x = blend(x, gray(x).mean((1, 2, 3), keepdim=True).expand_as(x), uniform(n, 0.6, 1.4))
        elif operation == 2:
            x = blend(x, gray(x), uniform(n, 0.6, 1.4))
        else:
            hsv = T._rgb2hsv(x)
            hue = (hsv[:, 0] + uniform(n, -0.1, 0.1)[:, None, None]) % 1.0
            x = T._hsv2rgb(torch.stack([hue, hsv[:, 1], hsv[:, 2]], 1))
    return x


MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1)
STD = torch.tensor([0.2470, 0.2435, 0.2616]).view(1, 3, 1, 1)


def normal(x):
    return ((x - MEAN.cuda()) / STD.cuda()).contiguous(memory_format=torch.channels_last)


def view(images):
    x = crops(images)
    x = torch.where((torch.rand(len(x), device="cuda") < 0.8)[:, None, None, None], jitter(x), x)
    x = torch.where((torch.rand(len(x), device="cuda") < 0.2)[:, None, None, None], gray(x), x)
    return normal(x)


@torch.no_grad()
def features(model, images):
    fc, model.encoder.fc = model.encoder.fc, nn.Identity()
    model.eval()
    found = [model.encoder(normal(part.float() / 255)) for part in images.split(1000)]
    model.train()
    model.encoder.fc = fc
    return F.normalize(torch.cat(found).float(), dim=1)


def knn(model, train, test, k, temperature):
    bank, queries = features(model, train[0]), features(model, test[0])
    right = 0
    for query, label in zip(queries.split(1000), test[1].split(1000)):
        similarity, places = (query @ bank.T).topk(k, dim=1)
        votes = torch.zeros(len(query), 10, device="cuda")
        votes.scatter_add_(1, train[1][places], (similarity / temperature).exp())
        right += (votes.argmax(1) == label).sum().item()
    return 100 * right / len(test[1])


def main(folder, epochs, options):
    given = dict(option.split("=") for option in options if "=" in option)
    batch, base, is_bf16 = int(given.get("batch", 512)), float(given.get("lr", 0.03)), "f32" not in options
    torch.manual_seed(int(given.get("seed", 0)))
    torch.backends.cudnn.benchmark = True
    train, test = load(folder, "data_batch_*.bin"), load(folder, "test_batch.bin")
    images = train[0].float() / 255
    model = SimSiam("resnet18", side=32).cuda().to(memory_format=torch.channels_last)
    # The predictor's rate stays, as the official code's --fix-pred-lr keeps it and as the recipe does.
    groups = [{"params": model.encoder.parameters()}, {"params": model.predictor.parameters()}]
    optimizer = torch.optim.SGD(groups, lr=base * batch / 256, momentum=0.9, weight_decay=5e-4)
    per_epoch = len(images) // batch
    steps, losses, begin = epochs * per_epoch, [], time.time()
    for epoch in range(epochs):
        order = torch.randperm(len(images), device="cuda")
        for index in range(per_epoch):
            step = epoch * per_epoch + index
            optimizer.param_groups[0]["lr"] = base * batch / 256 * 0.5 * (1 + math.cos(math.pi * step / steps))
            drawn = images[order[index * batch : (index + 1) * batch]]
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=is_bf16):
                loss, z = model(view(drawn), view(drawn))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if step < 8 or step % 97 == 96:
                level = F.normalize(z.detach().float(), dim=1).std(0).mean().item() * z.shape[1] ** 0.5
                print(json.dumps({"step": step + 1, "loss": round(loss.item(), 4), "collapse": round(level, 3)}))
    torch.cuda.synchronize()
    seconds = time.time() - begin
    losses = torch.stack(losses).tolist()
    if "out" in given:
        pathlib.Path(given["out"]).write_text(json.dumps(losses))
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=is_bf16):
        found = [knn(model, train, test, 200, 0.1), knn(model, train, test, 20, 0.07)]
    print(f"torch {options}: {epochs} epochs, {seconds:.1f} s, {epochs * per_epoch * batch / seconds:.0f} images/s, "
          f"loss {sum(losses[-97:]) / 97:.4f}, kNN {found[0]:.2f} / {found[1]:.2f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
