"""One SimSiam step in PyTorch, and what it is made of, to set it beside the benchmark `phases`.

usage: python3 torch_step.py BACKBONE SIDE BATCH PRECISION [compile]
Needs a GPU, PyTorch and torchvision. Views are on the GPU already. Channels last; convolutions are chosen by timing; bf16 is
autocast, f32 lets convolutions use TF32, as PyTorch does by itself. Prints the median step of 16 after 8.
"""
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision

WARM_UP_STEPS, STEPS = 8, 16


class SimSiam(nn.Module):
    def __init__(self, backbone, side, dim=2048, hidden=512):
        super().__init__()
        self.encoder = getattr(torchvision.models, backbone)(zero_init_residual=True)
        width = self.encoder.fc.in_features
        if side <= 32:
            self.encoder.conv1, self.encoder.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
        layer = [nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(inplace=True)]
        self.encoder.fc = nn.Sequential(
            nn.Linear(width, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(inplace=True),
            *(layer if backbone == "resnet50" else []),
            nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim, affine=False),
        )
        self.predictor = nn.Sequential(
            nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim)
        )

    def forward(self, x1, x2):
        z1, z2 = self.encoder(x1), self.encoder(x2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = -(F.cosine_similarity(p1, z2.detach()).mean() + F.cosine_similarity(p2, z1.detach()).mean()) / 2
        return loss, z1


def milliseconds(work):
    """Of each of the pieces that `work` does, by the GPU's own clock."""
    events = [torch.cuda.Event(enable_timing=True)]
    events[0].record()
    for _ in work:
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in zip(events, events[1:])]


def main(backbone, side, batch, precision, options):
    torch.backends.cudnn.benchmark = True
    model = SimSiam(backbone, side).cuda().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-4)
    views = [torch.randn(batch, 3, side, side, device="cuda").to(memory_format=torch.channels_last) for _ in range(2)]
    loss_of = torch.compile(model) if "compile" in options else model

    def step():
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = loss_of(*views)
        yield "forward"
        optimizer.zero_grad()
        loss.backward()
        yield "backward"
        optimizer.step()
        yield "update"

    times = sorted([milliseconds(step()) for _ in range(WARM_UP_STEPS + STEPS)][WARM_UP_STEPS:], key=sum)
    forward, backward, update = times[STEPS // 2]
    whole = forward + backward + update
    print(f"torch {torch.__version__} {backbone} {side} px, batch {batch}, {precision} {' '.join(options)}: step {whole:.2f} ms "
          f"(forward {forward:.2f}, backward {backward:.2f}, update {update:.2f}), {batch / whole * 1e3:.1f} images/s, "
          f"at most {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:])
