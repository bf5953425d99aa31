//! The weights of other programs as a state to evaluate or to train from.
//!
//! Both ways round of [`export()`](crate::export()): its files come back bit for bit. PyTorch's files are read
//! too: torchvision's ResNets, and checkpoints of the official SimSiam code, solo-learn and lightly.

mod file;
mod names;
mod origin;
mod resemblance;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use recipe::{Heads, Model, Recipe, Start};
use simsiam::{Entry, Layout, State};

use crate::error::EvaluationError;
use file::{Number, Tensor, WeightsFile};
use names::{Named, is_of_heads};

/// Step 0 of a run that starts from a file of weights.
#[derive(Debug, Clone)]
pub struct Imported {
    /// The file's weights and running statistics, no momentum, and what the file lacks drawn from the seed.
    pub state: State,
    /// The recipe's `start` with nothing left open.
    pub start: Start,
    /// What became of tensors that were not simply taken over, as sentences for people.
    pub notes: Vec<String>,
}

const NETWORK_ADVICE: &str =
    "set model.backbone, model.stem and model.width to the file's, or start from another file";
const HEADS_ADVICE: &str = "set model.projector_layers, model.projector_dim and model.predictor_dim to the file's, or take \
                            its backbone alone: `evaluate import --backbone-only`, or start.heads=random beside start.weights";
const ODD_HEADS_ADVICE: &str = "the file's projector is wider at one layer than at another, which no recipe is: take its \
                                backbone alone by `evaluate import --backbone-only`, or by start.heads=random beside \
                                start.weights";
const NAMES_ADVICE: &str = "give a file whose names are torchvision's (conv1.weight), the official SimSiam code's \
                            (encoder.conv1.weight), or solo-learn's or lightly's (backbone.conv1.weight, backbone.0.weight)";
const BROKEN_ADVICE: &str = "the file's network is broken: start from another file";

/// Reads the file that `start` names as weights of the recipe's network.
///
/// # Errors
/// A file that is missing, damaged, not the one with the recipe's hash, or of another network: the first
/// tensor that differs is named, and the network that the file looks like, or the stem that an export says it has.
pub fn import(recipe: &Recipe, start: &Start) -> Result<Imported, EvaluationError> {
    let path = &start.weights;
    let file = WeightsFile::open(path, start.blake3.as_deref())?;
    let named = Named::of(&file.tensors);
    let heads = start.heads.unwrap_or(if named.has_heads() { Heads::Imported } else { Heads::Random });
    let layout = Layout::of(&recipe.model);
    let import = Import { path, file: &file, named: &named, layout: &layout, heads };
    let biases = import.check()?;
    import.check_stem(&recipe.model)?;

    let mut state = State::initial(&layout, recipe.seed);
    import.fill(&layout.parameters, Arc::make_mut(&mut state.weights))?;
    import.fill(&layout.statistics, &mut state.statistics)?;
    for bias in &biases {
        import.fold(bias, &mut state.statistics)?;
    }
    file.check_unchanged(path)?;
    let start = Start { blake3: Some(file.blake3.clone()), heads: Some(heads), ..start.clone() };
    Ok(Imported { state, start, notes: import.notes(recipe, &biases) })
}

/// One file on its way into one network.
struct Import<'a> {
    path: &'a Path,
    file: &'a WeightsFile,
    named: &'a Named<'a>,
    layout: &'a Layout,
    heads: Heads,
}

/// The bias of a linear layer whose BatchNorm follows, which our networks leave out: BatchNorm subtracts the
/// mean, and the bias with it. The official code has one before the projector's last BatchNorm.
struct Bias<'a> {
    tensor: &'a Tensor,
    in_file: &'a str,
    /// The running mean of the BatchNorm.
    mean: &'a Entry,
}

impl<'a> Import<'a> {
    /// Whether a tensor of this name is asked of the file.
    fn is_wanted(&self, name: &str) -> bool {
        self.heads == Heads::Imported || !is_of_heads(name)
    }

    /// Refuses a file of another network before anything is read. Gives the biases that are to be folded away.
    fn check(&self) -> Result<Vec<Bias<'a>>, EvaluationError> {
        let entries = || self.layout.parameters.iter().chain(&self.layout.statistics);
        for entry in entries().filter(|entry| self.is_wanted(&entry.name)) {
            let found = match self.named.tensors.get(&entry.name) {
                None => "no such tensor".to_owned(),
                Some((_, tensor)) if tensor.shape != entry.shape => format!("{:?}", tensor.shape),
                Some((_, tensor)) if tensor.number == Number::Other => {
                    "numbers that are no floats".to_owned()
                }
                Some(_) => continue,
            };
            return Err(self.refuse(&entry.name, &format!("of shape {:?}", entry.shape), &found));
        }
        let ours: BTreeSet<&str> = entries().map(|entry| entry.name.as_str()).collect();
        let mut biases = Vec::new();
        for (name, (in_file, tensor)) in &self.named.tensors {
            if ours.contains(name.as_str()) || !self.is_wanted(name) {
                continue;
            }
            match self.mean_after(name) {
                Some(mean) if tensor.shape == mean.shape && tensor.number != Number::Other => {
                    biases.push(Bias { tensor, in_file, mean });
                }
                _ => {
                    return Err(self.refuse(name, "not to be there", &format!("{:?}", tensor.shape)));
                }
            }
        }
        Ok(biases)
    }

    /// Refuses a file of a network that pools where the recipe's does not, or the other way round.
    fn check_stem(&self, model: &Model) -> Result<(), EvaluationError> {
        let Some([ours, theirs]) = origin::other_stem(&self.file.metadata, model) else { return Ok(()) };
        let (expected, found) = (format!("model.stem {ours}"), format!("{theirs} in the file's metadata"));
        Err(EvaluationError::content(self.path, expected, found, NETWORK_ADVICE))
    }

    fn refuse(&self, name: &str, expected: &str, found: &str) -> EvaluationError {
        let mut ours = self.layout.parameters.iter().map(|entry| &entry.name);
        let advice = match is_of_heads(name) {
            _ if !ours.any(|ours| self.named.tensors.contains_key(ours)) => NAMES_ADVICE,
            true if self.named.has_uneven_projector() => ODD_HEADS_ADVICE,
            true => HEADS_ADVICE,
            false => NETWORK_ADVICE,
        };
        let found = format!("{found} {}", resemblance::describe(self.named));
        EvaluationError::content(self.path, format!("{name} {expected}"), found, advice)
    }

    /// The running mean of the BatchNorm that follows the linear layer whose bias is called `name`.
    fn mean_after(&self, name: &str) -> Option<&'a Entry> {
        let (sequence, place) = name.strip_suffix(".bias")?.rsplit_once('.')?;
        let place: usize = place.parse().ok()?;
        let mean = format!("{sequence}.{}.running_mean", place.checked_add(1)?);
        self.layout.statistics.iter().find(|entry| entry.name == mean)
    }

    /// Takes the entries' values over.
    fn fill(&self, entries: &[Entry], values: &mut [f32]) -> Result<(), EvaluationError> {
        for entry in entries.iter().filter(|entry| self.is_wanted(&entry.name)) {
            let (in_file, tensor) = self.named.tensors[&entry.name];
            values[entry.range.clone()].copy_from_slice(&self.read(in_file, tensor)?);
        }
        Ok(())
    }

    /// A layer without its bias has a mean without it.
    fn fold(&self, bias: &Bias<'_>, statistics: &mut [f32]) -> Result<(), EvaluationError> {
        let bias_values = self.read(bias.in_file, bias.tensor)?;
        for (mean, bias) in statistics[bias.mean.range.clone()].iter_mut().zip(bias_values) {
            *mean -= bias;
        }
        Ok(())
    }

    /// As many finite numbers as the shape says.
    fn read(&self, in_file: &str, tensor: &Tensor) -> Result<Vec<f32>, EvaluationError> {
        let values = self.file.values(self.path, tensor)?.unwrap_or_default();
        let numbers: usize = tensor.shape.iter().product();
        if values.len() != numbers {
            let (expected, found) = (format!("{numbers} numbers in {in_file}"), values.len().to_string());
            return Err(EvaluationError::content(self.path, expected, found, BROKEN_ADVICE));
        }
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            let expected = format!("finite numbers in {in_file}");
            return Err(EvaluationError::content(self.path, expected, value.to_string(), BROKEN_ADVICE));
        }
        Ok(values)
    }

    fn notes(&self, recipe: &Recipe, biases: &[Bias<'_>]) -> Vec<String> {
        let mut notes = Vec::new();
        for (number, name) in [(Number::F16, "f16"), (Number::Bf16, "bf16"), (Number::F64, "f64")] {
            let is_converted = |(name, (_, tensor)): &(&String, &(&str, &Tensor))| {
                tensor.number == number && self.is_wanted(name)
            };
            let count = self.named.tensors.iter().filter(is_converted).count();
            if count > 0 {
                notes.push(format!("{count} tensors of {name} are converted to f32"));
            }
        }
        if !self.named.classifier.is_empty() {
            notes.push(format!("the classifier is left out: {}", self.named.classifier.join(", ")));
        }
        for bias in biases {
            notes.push(format!("{} is subtracted from {}", bias.in_file, bias.mean.name));
        }
        if self.heads == Heads::Random {
            let why = if self.named.has_heads() { "as start.heads says" } else { "the file has none" };
            notes.push(format!("projector and predictor are drawn from seed {}: {why}", recipe.seed));
        }
        notes.extend(origin::other_normalisation(&self.file.metadata, recipe));
        notes
    }
}
