//! What `torch.save` wrote, read by the library that evaluation calls for it, without what needs the network of tensors.

use std::fs;

use pytorch_reader::PytorchReader;

use super::control::{Named, in_folder};

/// As in `control.rs`.
pub(crate) const DECODERS: &[Named] = &[("pickle", pickle, 400)];

/// A view of a few bytes may claim gigabytes: evaluation has compared its shape with the network's by then.
const MOST_BYTES: usize = 1 << 20;

/// Pickled weights: each tensor is as long as it says, or cannot be read.
fn pickle(bytes: &[u8]) -> bool {
    in_folder(|folder| {
        let path = folder.join("weights");
        fs::write(&path, bytes).unwrap();
        let Ok(reader) = PytorchReader::new(&path) else { return false };
        let small = reader.tensors().values().filter(|tensor| tensor.byte_len() <= MOST_BYTES);
        let mut is_any_read = false;
        for (tensor, content) in small.filter_map(|tensor| Some((tensor, tensor.read().ok()?))) {
            assert_eq!(content.len(), tensor.byte_len(), "{tensor:?}");
            is_any_read = true;
        }
        is_any_read
    })
}
