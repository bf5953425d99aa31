//! The secret that shows who may take part in a run.

use std::fmt;

/// Where a token is handed from one process to another: its environment, which unlike its arguments only the same
/// person can read.
pub const TOKEN_VARIABLE: &str = "SIMSIAM_TOKEN";

/// The environment variable that names a file with a run's token, and goes before the other.
pub const TOKEN_FILE_VARIABLE: &str = "SIMSIAM_TOKEN_FILE";

/// Hexadecimal digits that hold 128 bits: fewer could be guessed.
const SHORTEST: usize = 32;

/// More is some other file.
const LONGEST: usize = 1024;

/// Random bytes in a token that is drawn.
const DRAWN_BYTES: usize = 32;

/// What the keys of the all-reduce are derived for; no other use has these words.
const COLLECTIVE_CONTEXT: &str = "simsiam 2026-11-24 the workers of one run prove to be its workers";

/// A secret that coordinator and workers of a run share. It is printed by nothing: see [`Token::secret`].
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    secret: String,
    hash: blake3::Hash,
}

/// Why something is no token. Never tells what it is.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It could be guessed.
    #[error(
        "the token has {found} characters, and fewer than {SHORTEST} can be guessed; make one with \
         `coordinator token FILE`"
    )]
    TooShort {
        /// Its length.
        found: usize,
    },
    /// It is something else.
    #[error(
        "the token has {found} characters, expected at most {LONGEST}; make one with `coordinator token FILE`"
    )]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// It cannot be sent.
    #[error(
        "expected a token of letters, digits and punctuation, found a space, a line break or something that is not \
         ASCII in it; make one with `coordinator token FILE`"
    )]
    Character,
    /// Nothing can be drawn.
    #[error("the system has no randomness to draw a token from: {0}")]
    Randomness(String),
}

impl Token {
    /// The token in `text`, whose ends may be blank: files end with a line break.
    ///
    /// # Errors
    /// [`TokenError`], which never holds the text.
    pub fn parse(text: &str) -> Result<Token, TokenError> {
        let secret = text.trim();
        let found = secret.chars().count();
        if found < SHORTEST {
            return Err(TokenError::TooShort { found });
        }
        if found > LONGEST {
            return Err(TokenError::TooLong { found });
        }
        if !secret.chars().all(|character| character.is_ascii_graphic()) {
            return Err(TokenError::Character);
        }
        Ok(Token { secret: secret.to_owned(), hash: blake3::hash(secret.as_bytes()) })
    }

    /// A new one, as 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`TokenError::Randomness`].
    pub fn random() -> Result<Token, TokenError> {
        let mut bytes = [0; DRAWN_BYTES];
        getrandom::fill(&mut bytes).map_err(|error| TokenError::Randomness(error.to_string()))?;
        Token::parse(&bytes.map(|byte| format!("{byte:02x}")).concat())
    }

    /// The token itself, for the one who is to have it.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// Whether `shown` is this token, found out in a time that does not depend on where the two differ.
    pub fn is(&self, shown: &[u8]) -> bool {
        // Hashes are compared in constant time.
        self.hash == blake3::hash(shown)
    }

    /// The key by which the workers of this run know each other, from which the token cannot be had.
    pub fn collective_key(&self, run_id: [u8; 16]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(COLLECTIVE_CONTEXT);
        *hasher.update(&run_id).update(self.secret.as_bytes()).finalize().as_bytes()
    }
}

impl fmt::Debug for Token {
    /// Tells nothing: what is printed may end up in a log.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_be_guessed_and_can_be_sent_is_a_token() {
        let (long, longest) = ("x".repeat(LONGEST + 1), "x".repeat(LONGEST));
        for (text, expected) in [
            ("", Some(TokenError::TooShort { found: 0 })),
            ("  \n", Some(TokenError::TooShort { found: 0 })),
            ("0123456789abcdef0123456789abcde", Some(TokenError::TooShort { found: 31 })),
            ("0123456789abcdef0123456789abcdef", None),
            ("\n0123456789abcdef0123456789abcdef\r\n", None),
            ("0123456789abcdef 0123456789abcdef", Some(TokenError::Character)),
            ("0123456789abcdef\n0123456789abcdef", Some(TokenError::Character)),
            ("0123456789abcdéf0123456789abcdef", Some(TokenError::Character)),
            (&longest, None),
            (&long, Some(TokenError::TooLong { found: 1025 })),
        ] {
            let parsed = Token::parse(text);
            assert_eq!(parsed.as_ref().err(), expected.as_ref(), "{text:?}");
            if let Ok(token) = parsed {
                assert_eq!(token.secret(), text.trim());
            }
        }
    }

    #[test]
    fn a_token_is_itself_and_no_other_and_is_not_printed() {
        let (one, other) = (Token::random().unwrap(), Token::random().unwrap());
        assert_eq!(one.secret().len(), 64);
        assert!(one.is(one.secret().as_bytes()) && !one.is(other.secret().as_bytes()) && !one.is(b""));
        assert_eq!(format!("{one:?}"), "Token(secret)");
    }

    #[test]
    fn each_run_and_token_has_its_own_key() {
        let (one, other) = (Token::random().unwrap(), Token::random().unwrap());
        assert_eq!(one.collective_key([1; 16]), one.clone().collective_key([1; 16]));
        assert_ne!(one.collective_key([1; 16]), one.collective_key([2; 16]));
        assert_ne!(one.collective_key([1; 16]), other.collective_key([1; 16]));
    }
}
