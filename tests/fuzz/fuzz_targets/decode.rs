//! One program for all decoders that need no tensors: which one is named by the variable `TARGET`.

#![no_main]

#[path = "../../decoders/control.rs"]
mod control;
#[path = "../../decoders/dashboard.rs"]
mod dashboard;
#[path = "../../decoders/gradients.rs"]
mod gradients;
#[path = "../../decoders/images.rs"]
mod images;
#[path = "../../decoders/pickles.rs"]
mod pickles;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

/// The decoder that is meant.
fn decoder() -> control::Decode {
    static DECODER: OnceLock<control::Decode> = OnceLock::new();
    *DECODER.get_or_init(|| {
        let wanted = std::env::var("TARGET").unwrap_or_default();
        let all = [
            control::DECODERS,
            images::DECODERS,
            gradients::DECODERS,
            dashboard::DECODERS,
            pickles::DECODERS,
        ];
        let found = all.into_iter().flatten().find(|(name, ..)| *name == wanted);
        found.expect("TARGET names no decoder of tests/decoders").1
    })
}

fuzz_target!(init: {
    // As every Rust program does; libFuzzer's begins in C++.
    // SAFETY: no other thread runs yet.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}, |bytes: &[u8]| {
    decoder()(bytes);
});
