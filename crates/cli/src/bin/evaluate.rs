//! Says what a trained encoder is worth. See `evaluate --help`.

fn main() -> std::process::ExitCode {
    cli::evaluate::main()
}
