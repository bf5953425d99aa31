//! Checksums of what must not be changed on its way. Blocks need none, for the manifest has their hashes; gradients have
//! their own; and where TLS is used, nothing arrives changed.

use bytes::Bytes;

use crate::v1;

impl v1::FilePart {
    /// A piece of `file` with its checksum.
    pub fn new(file: String, data: Bytes) -> v1::FilePart {
        let crc32c = crc32c::crc32c(&data);
        v1::FilePart { file, data, crc32c }
    }

    /// Whether it has arrived as it was sent.
    ///
    /// # Errors
    /// `DATA_LOSS` with a sentence.
    pub fn check(&self) -> Result<(), tonic::Status> {
        check(self.crc32c, crc32c::crc32c(&self.data), &format!("a part of {}", self.file))
    }
}

impl v1::JoinReply {
    /// The same, with the checksum of recipe and manifest.
    #[must_use]
    pub fn with_checksum(self) -> v1::JoinReply {
        v1::JoinReply { crc32c: self.computed(), ..self }
    }

    /// Whether recipe and manifest have arrived as they were sent.
    ///
    /// # Errors
    /// `DATA_LOSS` with a sentence.
    pub fn check(&self) -> Result<(), tonic::Status> {
        check(self.crc32c, self.computed(), "recipe and manifest")
    }

    fn computed(&self) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(self.recipe_toml.as_bytes()), self.manifest_json.as_bytes())
    }
}

fn check(expected: u32, found: u32, what: &str) -> Result<(), tonic::Status> {
    match expected == found {
        true => Ok(()),
        false => Err(tonic::Status::data_loss(format!(
            "{what} arrived changed (CRC-32C {found:08x}, not {expected:08x}): look at the network between, or use TLS"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_is_refused() {
        let part = v1::FilePart::new("model.safetensors".to_string(), Bytes::from_static(b"weights"));
        part.check().unwrap();
        let changed = v1::FilePart { data: Bytes::from_static(b"Weights"), ..part };
        let sentence = changed.check().unwrap_err().to_string();
        assert!(sentence.contains("model.safetensors") && sentence.contains("changed"), "{sentence}");

        let reply = v1::JoinReply {
            recipe_toml: "seed = 1".into(),
            manifest_json: "{}".into(),
            ..Default::default()
        };
        let reply = reply.with_checksum();
        reply.check().unwrap();
        v1::JoinReply { recipe_toml: "seed = 3".into(), ..reply.clone() }.check().unwrap_err();
        v1::JoinReply { manifest_json: "{ ".into(), ..reply }.check().unwrap_err();
    }
}
