//! The recipes that ship with the program: the files of `configs/`, so that it needs none of them at hand.

/// The recipe of a run without `--config`: drawn images, a narrow network, about a minute on two CPU cores.
pub const QUICKSTART: &str = include_str!("../../../configs/quickstart.toml");

/// Every recipe of `configs/`: its name, which is also its file's, and its text.
pub const PRESETS: &[(&str, &str)] = &[
    ("quickstart", QUICKSTART),
    ("stl10-resnet18", include_str!("../../../configs/stl10-resnet18.toml")),
    ("stl10-resnet50", include_str!("../../../configs/stl10-resnet50.toml")),
    ("cifar10-resnet18", include_str!("../../../configs/cifar10-resnet18.toml")),
    ("imagefolder-resnet18", include_str!("../../../configs/imagefolder-resnet18.toml")),
];
