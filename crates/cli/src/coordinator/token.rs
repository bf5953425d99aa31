//! `coordinator token`: the secret that workers from elsewhere need.

use anyhow::Result;
use protocol::Token;

use super::TokenArguments;
use crate::exit::{Ending, answer};
use crate::private_file;

/// Draws a token into a new file.
pub(super) fn run(arguments: &TokenArguments) -> Result<Ending> {
    let file = &arguments.file;
    private_file::write_new(file, &format!("{}\n", Token::random()?.secret()))?;
    answer(&format!(
        "{file} holds a new token; give --token-file {file} to the coordinator, and a copy to each worker",
        file = file.display()
    ));
    Ok(Ending::Done)
}
