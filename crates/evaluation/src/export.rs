//! Weights for other programs.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use simsiam::Entry;

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
    /// The official SimSiam code's: `encoder.conv1.weight`, with projector (`encoder.fc`) and predictor.
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
    let tensors = parameters.chain(statistics).filter_map(|(entry, values)| {
        let bytes = bytemuck::cast_slice(&values[entry.range.clone()]);
        let view = TensorView::new(Dtype::F32, entry.shape.clone(), bytes);
        Some((name(entry, names)?, view.expect("a range has its shape's length")))
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

    #[test]
    fn the_official_names_are_those_of_the_checkpoint() {
        let encoder = Encoder::random(&quickstart());
        let mut names = names_of(Names::Simsiam);
        let layout = encoder.layout();
        let mut expected: Vec<String> =
            layout.parameters.iter().chain(&layout.statistics).map(|entry| entry.name.clone()).collect();
        names.sort();
        expected.sort();
        assert_eq!(names, expected);
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
