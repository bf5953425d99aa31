//! Checksums of what must not be changed on its way. Blocks need none, for the manifest has their hashes; gradients have
//! their own; and where TLS is used, nothing arrives changed.

use bytes::Bytes;
use prost::Message;

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

/// Gives messages a checksum over their encoding without it.
macro_rules! checksummed {
    ($($message:ident: $what:literal),*) => {$(
        impl v1::$message {
            /// The same, with its checksum.
            #[must_use]
            pub fn with_checksum(self) -> v1::$message {
                let bare = v1::$message { crc32c: 0, ..self };
                v1::$message { crc32c: crc32c::crc32c(&bare.encode_to_vec()), ..bare }
            }

            /// Whether it has arrived as it was sent. A field that this version does not know counts as a change: both
            /// sides are of one version.
            ///
            /// # Errors
            /// `DATA_LOSS` with a sentence.
            pub fn check(&mut self) -> Result<(), tonic::Status> {
                let expected = std::mem::take(&mut self.crc32c);
                check(expected, crc32c::crc32c(&self.encode_to_vec()), $what)
            }
        }
    )*};
}

checksummed!(JoinRequest: "a request to join", JoinReply: "recipe and manifest", Report: "a report", Order: "an order");

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
        reply.clone().check().unwrap();
        v1::JoinReply { recipe_toml: "seed = 3".into(), ..reply.clone() }.check().unwrap_err();
        v1::JoinReply { manifest_json: "{ ".into(), ..reply }.check().unwrap_err();
    }

    #[test]
    fn no_changed_bit_of_an_order_is_obeyed() {
        let halt = v1::Halt { generation: 7, reason: "a peer was lost".to_string() };
        let order = v1::Order { order: Some(v1::order::Order::Halt(halt)), crc32c: 0 }.with_checksum();
        let bytes = order.encode_to_vec();
        v1::Order::decode(&bytes[..]).unwrap().check().unwrap();
        for bit in 0..8 * bytes.len() {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            // Some bits have no meaning, such as those of the checksum beyond 32.
            if let Ok(mut read) = v1::Order::decode(&changed[..])
                && read != order
            {
                assert!(read.check().is_err(), "bit {bit}: {read:?}");
            }
        }
    }
}
