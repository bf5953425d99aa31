//! Weights for other programs.

use std::collections::HashMap;
use std::path::Path;

use recipe::{Model, Stem};
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use simsiam::{Entry, Layout};

use crate::aside::write_whole;
use crate::encoder::Encoder;
use crate::error::EvaluationError;

/// Whose names tensors get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Names {
    /// torchvision's ResNet: `conv1.weight`, `bn1.running_mean`, `layer1.0.conv1.weight`. The backbone alone;
    /// there is no `fc`, so load it with `strict=False` or after `del model.fc`.
    Torchvision,
    /// The official SimSiam code's: `encoder.conv1.weight`, with projector (`encoder.fc`) and predictor, and zeros for
    /// the bias that its last projector layer has and ours has not.
    Simsiam,
}

/// The encoder's name in the official code, before torchvision's names.
pub(crate) const ENCODER: &str = "encoder.";
/// The projector, in the place of torchvision's classifier.
pub(crate) const PROJECTOR: &str = "encoder.fc.";

/// Writes the weights and running statistics to `path` as safetensors in f32: aside, synced, then renamed. The
/// file's metadata says what network it is and how its input must be normalised.
///
/// # Errors
/// Those of the disk; whatever was at `path` is untouched then.
pub fn export(encoder: &Encoder, names: Names, path: &Path) -> Result<(), EvaluationError> {
    write_whole(path, &serialize(encoder, names))
}

fn serialize(encoder: &Encoder, names: Names) -> Vec<u8> {
    let (layout, state) = (encoder.layout(), encoder.state());
    let parameters = layout.parameters.iter().map(|entry| (entry, &*state.weights));
    let statistics = layout.statistics.iter().map(|entry| (entry, state.statistics.as_slice()));
    let ours = parameters.chain(statistics).filter_map(|(entry, values)| {
        Some((name(entry, names)?.to_owned(), entry.shape.clone(), &values[entry.range.clone()]))
    });
    let zeros = vec![0.0; encoder.recipe().model.projector_dim as usize];
    let bias = official_bias(layout).filter(|_| names == Names::Simsiam);
    let bias = bias.map(|name| (name, vec![zeros.len()], zeros.as_slice()));
    let tensors = ours.chain(bias).map(|(name, shape, values)| {
        let view = TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(values));
        (name, view.expect("a range has its shape's length"))
    });
    let recipe = encoder.recipe();
    let text = |value: Result<String, serde_json::Error>| value.expect("numbers and names can be written");
    let metadata = HashMap::from([
        ("format".to_owned(), "pt".to_owned()),
        ("model".to_owned(), text(serde_json::to_string(&recipe.model))),
        ("mean".to_owned(), text(serde_json::to_string(&recipe.views.mean))),
        ("std".to_owned(), text(serde_json::to_string(&recipe.views.std))),
        ("crop_px".to_owned(), recipe.views.crop_px.to_string()),
        ("weights".to_owned(), text(serde_json::to_string(encoder.identity()))),
    ]);
    safetensors::serialize(tensors, Some(metadata)).expect("names are unique and shapes fit")
}

/// What to do with a model of torchvision, or the official one that is made of it, before it can load an export, as lines of
/// Python; or why nothing helps. `None` where it loads as it is.
pub fn before_loading(model: &Model, names: Names) -> Option<String> {
    let network = match names {
        Names::Torchvision => "backbone",
        Names::Simsiam => "model.encoder",
    };
    let convolution = format!("{network}.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)");
    match model.stem {
        _ if model.width != 64 => {
            Some(format!("torchvision has no such network: its width is 64, this one's {}", model.width))
        }
        Stem::Imagenet => None,
        Stem::SmallPool => Some(format!("in PyTorch, before loading it:\n  {convolution}")),
        Stem::Small => Some(format!(
            "in PyTorch, before loading it:\n  {convolution}\n  {network}.maxpool = torch.nn.Identity()"
        )),
    }
}

/// The name of the bias that the official code's last projector layer has before its BatchNorm, and ours has not. Without
/// it strict loading fails, and otherwise a random one stays there that the running mean does not know of.
fn official_bias(layout: &Layout) -> Option<String> {
    let is_linear = |entry: &&Entry| entry.name.starts_with(PROJECTOR) && entry.shape.len() == 2;
    let last = layout.parameters.iter().rfind(is_linear)?;
    Some(last.name.replace(".weight", ".bias"))
}

/// The entry's name in the file; `None` if it is left out.
fn name(entry: &Entry, names: Names) -> Option<&str> {
    match names {
        Names::Simsiam => Some(&entry.name),
        Names::Torchvision if entry.name.starts_with(PROJECTOR) => None,
        Names::Torchvision => entry.name.strip_prefix(ENCODER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::quickstart;
    use safetensors::SafeTensors;
    use std::collections::BTreeSet;

    fn names_of(names: Names) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/backbone.safetensors");
        export(&Encoder::random(&quickstart()), names, &path).unwrap();
        let bytes = std::fs::read(path).unwrap();
        SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn torchvision_gets_the_backbone_alone_under_its_names() {
        let names = names_of(Names::Torchvision);
        for name in ["conv1.weight", "bn1.running_mean", "bn1.running_var", "layer4.0.downsample.1.bias"] {
            assert!(names.iter().any(|found| found == name), "{name} is missing");
        }
        assert!(
            !names
                .iter()
                .any(|name| name.contains("fc") || name.contains("encoder") || name.contains("predictor"))
        );
        // Of a ResNet-10: 9 convolutions and 3 shortcuts, each with 4 numbers of BatchNorm.
        assert_eq!(names.len(), 12 * 5);
    }

    /// Whose last projector layer has a bias, so that its model loads the file strictly.
    #[test]
    fn the_official_names_are_those_of_the_checkpoint_and_a_bias_of_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("simsiam.safetensors");
        for (layers, bias) in [(2, "encoder.fc.3.bias"), (3, "encoder.fc.6.bias")] {
            let mut recipe = quickstart();
            recipe.model.projector_layers = layers;
            let encoder = Encoder::random(&recipe);
            export(&encoder, Names::Simsiam, &path).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let layout = encoder.layout();
            let ours = layout.parameters.iter().chain(&layout.statistics).map(|entry| entry.name.as_str());
            let expected: BTreeSet<&str> = ours.chain([bias]).collect();
            assert_eq!(file.names().into_iter().collect::<BTreeSet<_>>(), expected);
            let zeros = file.tensor(bias).unwrap();
            assert_eq!(zeros.shape(), [recipe.model.projector_dim as usize]);
            assert!(zeros.data().iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn another_stem_than_torchvisions_is_told_in_python() {
        let convolution = "backbone.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)";
        let pooling = "backbone.maxpool = torch.nn.Identity()";
        for (stem, width, phrases) in [
            (Stem::Imagenet, 64, &[][..]),
            (Stem::SmallPool, 64, &[convolution]),
            (Stem::Small, 64, &[convolution, pooling]),
            (Stem::Small, 16, &["no such network: its width is 64, this one's 16"]),
        ] {
            let model = Model { stem, width, ..quickstart().model };
            let told = before_loading(&model, Names::Torchvision);
            assert_eq!(told.is_some(), !phrases.is_empty(), "{told:?}");
            let told = told.unwrap_or_default();
            assert!(phrases.iter().all(|phrase| told.contains(phrase)), "{told}");
            assert_eq!(told.contains("maxpool"), phrases.contains(&pooling), "{told}");
            let official = before_loading(&model, Names::Simsiam).unwrap_or_default();
            assert_eq!(official, told.replace("backbone.", "model.encoder."));
        }
    }

    #[test]
    fn a_failed_export_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        let error = export(&Encoder::random(&quickstart()), Names::Simsiam, &path).unwrap_err().to_string();
        assert!(error.contains("cannot write"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
