"""Carry weights from torchvision to the program `evaluate` and back, and compare the features of both.

usage: pip install torch torchvision safetensors pyarrow pillow
       cargo build --release --workspace
       python crates/evaluation/tests/torchvision_features.py target/release/evaluate

For ResNet-18 and ResNet-50 with random weights and statistics: torch.save, `evaluate import`, `evaluate embed`,
`evaluate export`, load_state_dict. Ends with an error where a feature differs by more than TOLERANCE.
"""

import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pyarrow.parquet
import safetensors.torch
import torch
import torchvision
from PIL import Image

TOLERANCE = 1e-4
PICTURES, SIDE_PX = 70, 96
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def run(*arguments):
    print("$", *map(str, arguments))
    subprocess.run(list(map(str, arguments)), check=True)


def randomise(network):
    """Statistics as after training, scaled so that features stay near 1 in all those blocks."""
    for name, value in network.state_dict().items():
        if name.endswith("running_mean") or (value.ndim == 1 and name.endswith("bias")):
            value.normal_(0, 0.2)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.ndim == 1:
            value.uniform_(0.2, 0.6)


def draw_pictures(folder):
    generator = np.random.default_rng(0)
    for number in range(PICTURES):
        coarse = Image.fromarray(generator.integers(256, size=(8, 8, 3), dtype=np.uint8))
        path = folder / f"class-{number % 3}" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((SIDE_PX, SIDE_PX), Image.BICUBIC).save(path)


def features_by_torchvision(network, folder, paths):
    images = [torch.tensor(np.array(Image.open(folder / path))).permute(2, 0, 1) for path in paths]
    x = (torch.stack(images).float() / 255 - MEAN) / STD
    network.fc = torch.nn.Identity()
    return network.eval()(x).numpy()


@torch.no_grad()
def compare(evaluate, name, work):
    torch.manual_seed(1)
    network = getattr(torchvision.models, name)()
    randomise(network)
    weights, run_folder, pictures = work / f"{name}.pth", work / name, work / "pictures"
    torch.save(network.state_dict(), weights)
    recipe = ["--config", "imagefolder-resnet18", "--set", f"model.backbone={name}", "--set", f"views.crop_px={SIDE_PX}"]
    run(evaluate, "import", weights, run_folder, *recipe)
    run(evaluate, "embed", run_folder, pictures, work / f"{name}.parquet")
    run(evaluate, "export", run_folder, work / f"{name}.safetensors")

    table = pyarrow.parquet.read_table(work / f"{name}.parquet")
    assert table.column("label").to_pylist() == [path.split("/")[0] for path in table.column("path").to_pylist()]
    ours = np.array(table.column("features").to_pylist(), dtype=np.float32)
    paths = table.column("path").to_pylist()
    assert len(paths) == PICTURES
    back = getattr(torchvision.models, name)()
    loaded = back.load_state_dict(safetensors.torch.load_file(work / f"{name}.safetensors"), strict=False)
    absent = [key for key in loaded.missing_keys if not key.endswith("num_batches_tracked")]
    assert absent == ["fc.weight", "fc.bias"] and not loaded.unexpected_keys, loaded
    for what, theirs in (("imported", network), ("exported again", back)):
        expected = features_by_torchvision(theirs, pictures, paths)
        difference = np.abs(ours - expected).max()
        print(f"{name} {what}: largest feature {expected.max():.3f}, largest difference {difference:.1e}")
        assert difference < TOLERANCE, f"{name} {what}: {difference} is not below {TOLERANCE}"


def main():
    evaluate = pathlib.Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        draw_pictures(work / "pictures")
        for name in ("resnet18", "resnet50"):
            compare(evaluate, name, work)


if __name__ == "__main__":
    main()
