//! The tensors of a file of weights: safetensors, or what `torch.save` wrote.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use pytorch_reader::{DType, PytorchReader};
use safetensors::{Dtype, SafeTensors};

use super::origin::Metadata;
use crate::error::EvaluationError;

/// A file's tensors under the names that they have there, and its hash.
pub(super) struct WeightsFile {
    pub(super) tensors: BTreeMap<String, Tensor>,
    pub(super) blake3: String,
    /// What a safetensors file says of itself.
    pub(super) metadata: Metadata,
    /// All of a safetensors file; nothing of a PyTorch file, whose tensors are read one by one.
    content: Vec<u8>,
}

/// What a tensor is; [`WeightsFile::values`] reads it.
pub(super) struct Tensor {
    pub(super) number: Number,
    pub(super) shape: Vec<usize>,
    place: Place,
}

enum Place {
    /// In the content.
    Within(Range<usize>),
    OnDisk(pytorch_reader::Tensor),
}

/// The type of a tensor's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    F16,
    Bf16,
    F32,
    F64,
    /// One that no weight has.
    Other,
}

/// The keys under which training scripts keep a network's weights beside an optimizer's state: the official
/// SimSiam code the first, torchvision's own training script the second.
const SECTIONS: [&str; 2] = ["state_dict.", "model."];

const ADVICE: &str = "give a safetensors file, or one that torch.save wrote of a state_dict";

impl WeightsFile {
    /// Reads the names and shapes of a file's tensors. Pickles are parsed and never run.
    ///
    /// # Errors
    /// A file that is missing, truncated, or of another kind; one whose hash is not `expected`.
    pub(super) fn open(path: &Path, expected_blake3: Option<&str>) -> Result<WeightsFile, EvaluationError> {
        let is_file = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(EvaluationError::content(path, "a file of weights", "no such file", ADVICE));
            }
            other => other.map_err(EvaluationError::io("open", path))?.is_file(),
        };
        if !is_file {
            return Err(EvaluationError::content(path, "a file of weights", "no plain file", ADVICE));
        }
        let file = if starts_like_safetensors(path).map_err(EvaluationError::io("read", path))? {
            Self::open_safetensors(path)?
        } else {
            Self::open_pytorch(path)?
        };
        if let Some(expected) = expected_blake3
            && expected != file.blake3
        {
            let (expected, found) = (format!("BLAKE3 {expected}"), format!("BLAKE3 {}", file.blake3));
            let advice =
                "the recipe was made with another file of this name: bring that one back, or start a new run";
            return Err(EvaluationError::content(path, expected, found, advice));
        }
        Ok(file)
    }

    fn open_safetensors(path: &Path) -> Result<WeightsFile, EvaluationError> {
        let content = fs::read(path).map_err(EvaluationError::io("read", path))?;
        let damaged = |error: &dyn std::fmt::Display| {
            EvaluationError::content(
                path,
                "a whole safetensors file",
                format!("a damaged one: {error}"),
                ADVICE,
            )
        };
        // The first proves that every place lies within the content.
        SafeTensors::deserialize(&content).map_err(|error| damaged(&error))?;
        let (header_bytes, header) = SafeTensors::read_metadata(&content).map_err(|error| damaged(&error))?;
        let start = header_bytes + size_of::<u64>();
        let tensors = header.tensors().into_iter().map(|(name, info)| {
            let (from, to) = info.data_offsets;
            let place = Place::Within(start + from..start + to);
            (name, Tensor { number: info.dtype.into(), shape: info.shape.clone(), place })
        });
        let (tensors, blake3) = (tensors.collect(), blake3::hash(&content).to_string());
        let metadata = header.metadata().clone().unwrap_or_default();
        Ok(WeightsFile { tensors, blake3, metadata, content })
    }

    fn open_pytorch(path: &Path) -> Result<WeightsFile, EvaluationError> {
        let blake3 = hash(path)?;
        let reader = PytorchReader::new(path).map_err(|error| {
            let expected = "a safetensors file or one that torch.save wrote";
            EvaluationError::content(path, expected, format!("one that cannot be read: {error}"), ADVICE)
        })?;
        let mut tensors: BTreeMap<String, Tensor> = reader
            .into_tensors()
            .into_iter()
            .map(|(name, tensor)| {
                let (number, shape) = (tensor.dtype().into(), tensor.shape().to_vec());
                (name, Tensor { number, shape, place: Place::OnDisk(tensor) })
            })
            .collect();
        let section = SECTIONS.iter().find(|section| tensors.keys().any(|name| name.starts_with(**section)));
        if let Some(section) = section {
            let within =
                |(name, tensor): (String, Tensor)| Some((name.strip_prefix(section)?.to_owned(), tensor));
            tensors = tensors.into_iter().filter_map(within).collect();
        }
        Ok(WeightsFile { tensors, blake3, metadata: Metadata::new(), content: Vec::new() })
    }

    /// A tensor's numbers as f32; `None` if they are no floating point numbers. A caller that has compared the
    /// shape knows how many it gets.
    ///
    /// # Errors
    /// A tensor whose bytes are not there.
    pub(super) fn values(&self, path: &Path, tensor: &Tensor) -> Result<Option<Vec<f32>>, EvaluationError> {
        let read;
        let bytes: &[u8] = match &tensor.place {
            Place::Within(range) => &self.content[range.clone()],
            Place::OnDisk(tensor) => {
                read = tensor.read().map_err(|error| {
                    let advice = "the file is damaged: get it again";
                    EvaluationError::content(path, "every tensor whole", error.to_string(), advice)
                })?;
                &read
            }
        };
        Ok(tensor.number.widen(bytes))
    }

    /// Proves that a file read in pieces was the same one all along.
    ///
    /// # Errors
    /// A file that changed since it was opened.
    pub(super) fn check_unchanged(&self, path: &Path) -> Result<(), EvaluationError> {
        let found = if self.content.is_empty() { hash(path)? } else { self.blake3.clone() };
        if found == self.blake3 {
            return Ok(());
        }
        let (expected, found) = (format!("BLAKE3 {}", self.blake3), format!("BLAKE3 {found}"));
        let advice = "the file changed while it was read: wait until it is written, then start again";
        Err(EvaluationError::content(path, expected, found, advice))
    }
}

impl Number {
    /// The numbers in `bytes`, little-endian, as f32.
    fn widen(self, bytes: &[u8]) -> Option<Vec<f32>> {
        fn each<const N: usize>(bytes: &[u8], widen: impl Fn([u8; N]) -> f32) -> Option<Vec<f32>> {
            Some(bytes.as_chunks::<N>().0.iter().map(|bytes| widen(*bytes)).collect())
        }
        match self {
            Number::F16 => each(bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Number::Bf16 => each(bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Number::F32 => each(bytes, f32::from_le_bytes),
            Number::F64 => each(bytes, |bytes| f64::from_le_bytes(bytes) as f32),
            Number::Other => None,
        }
    }
}

impl From<Dtype> for Number {
    fn from(dtype: Dtype) -> Number {
        match dtype {
            Dtype::F16 => Number::F16,
            Dtype::BF16 => Number::Bf16,
            Dtype::F32 => Number::F32,
            Dtype::F64 => Number::F64,
            _ => Number::Other,
        }
    }
}

impl From<DType> for Number {
    fn from(dtype: DType) -> Number {
        match dtype {
            DType::F16 => Number::F16,
            DType::BF16 => Number::Bf16,
            DType::F32 => Number::F32,
            DType::F64 => Number::F64,
            _ => Number::Other,
        }
    }
}

/// A safetensors file begins with the length of its header, and the header is JSON. No PyTorch file does.
fn starts_like_safetensors(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    File::open(path)?.take(9).read_to_end(&mut start)?;
    Ok(start.get(8) == Some(&b'{'))
}

fn hash(path: &Path) -> Result<String, EvaluationError> {
    let mut hasher = blake3::Hasher::new();
    File::open(path)
        .and_then(|file| hasher.update_reader(file).map(|hasher| hasher.finalize()))
        .map(|hash| hash.to_string())
        .map_err(EvaluationError::io("read", path))
}
